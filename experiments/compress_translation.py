"""A translator made smaller along several pipelines, each step with its receipt, and BLEU with its uncertainty.

    python -m jaxaccel.train multi30k_en_de
    python experiments/compress_translation.py --origin runs/multi30k_en_de

takes its Transformer through pipelines, on the 1,000 captions of test_2016_flickr, and prints one table. Half of its
weights are the table of the tokens. BLEU of the last step of each is compared with that of the origin by a paired
bootstrap (Koehn 2004, https://aclanthology.org/W04-3250, as sacreBLEU has it): a difference is worth something where p
is small.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from receipts_table import Plan, find_place, follow_plans, print_table

import jaxaccel as ja
from jaxaccel import cli, models
from jaxaccel.compression import FineTune, LowRank, Quantize, Step, Student
from jaxaccel.core import runtime
from jaxaccel.optim import Sparse


@dataclasses.dataclass(frozen=True)
class Options:
    """Which run to compress, and how long to fine-tune."""

    origin: Path
    """Run of the recipe `multi30k_en_de`."""
    taught: Path | None = None
    """Student trained on the origin's translations, which `python -m jaxaccel.predict --split train` writes."""
    epochs: float = 2.0
    """Passes over the training split in each fine-tuning."""
    student_epochs: float = 12.0
    """Passes over the training split in which a smaller network learns from the first one."""
    resamples: int = 1000
    """Resamples of the test split in the bootstrap; 0 leaves it out."""
    only: tuple[str, ...] = ()
    """Names of pipelines; all by default."""
    run: Path = Path("runs/compress_translation")
    """Directory of all the pipelines."""
    out: Path | None = None
    """Also write the rows here, as JSON."""


def plan_pipelines(options: Options) -> dict[str, Plan]:
    """The pipelines by their names."""
    tune = FineTune(epochs=options.epochs, rate=0.3)
    int8: dict[str, Step] = {"int8": Quantize(activations="dynamic")}
    pruned = dataclasses.replace(tune, sparse=Sparse(method="gradual", sparsity=0.8, every=10, end=0.5))
    small = partial(models.translator_tiny, depth=2, width=96, hidden=192)
    learn = FineTune(epochs=options.student_epochs, rate=1.0, warmup=0.1, teacher="origin")
    steps: dict[str, dict[str, Step]] = {
        "int8, weights only": {"int8": Quantize(activations="none")},
        "int8": int8,
        "int8 aware": {"fine_tune": dataclasses.replace(tune, precision="int8-qat"), **int8},
        "80% sparse": {"prune": pruned, **int8},
        "low rank": {"low_rank": LowRank(flops=0.6), "fine_tune": tune, **int8},
        "fine-tuned alone": {"fine_tune": tune},
        "smaller, taught": {"student": Student(model=small), "fine_tune": learn, **int8},
        "smaller, alone": {
            "student": Student(model=small),
            "fine_tune": dataclasses.replace(learn, teacher=""),
            **int8,
        },
    }
    plans = {name: Plan("Transformer", options.origin, some) for name, some in steps.items()}
    if options.taught:
        plans["smaller, taught by translations"] = Plan("student", options.taught, int8)
    return plans


def translate_test(run: Path) -> tuple[list[str], list[str]]:
    """What a model makes of the split that its run is evaluated on, and the references."""
    trained = ja.load(run)
    task, data = trained.task, trained.recipe.data
    assert isinstance(task, ja.tasks.Translation)
    examples = trained.source(data.eval_split)
    texts, references = (
        [examples[i][name].item().decode() for i in range(len(examples))]
        for name in (task.source, task.target)
    )
    tokens = trained.predict(texts)["tokens"]
    return [task.decode(row[0]) for row in tokens], references


def compare(origin: Path, place: Path, resamples: int) -> dict[str, float]:
    """BLEU of two models on the same texts: the 95% interval of the second, and p of their difference."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.significance import PairedTest

    first, references = translate_test(origin)
    second, _ = translate_test(place)
    systems = [("origin", first), ("compressed", second)]
    test = PairedTest(systems, {"BLEU": BLEU(force=True)}, [references], "bs", resamples)
    _, scores = test()
    _, found = scores["BLEU"]
    return {"bleu": found.score, "interval": found.ci, "p": found.p_value}


SCORES = {
    "BLEU": lambda scores: f"{scores['bleu']:.2f}",
    "chrF": lambda scores: f"{scores['chrf']:.2f}",
}


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/compress_translation.py", __doc__ or "", Options, argv)
    runtime.setup()
    plans = plan_pipelines(options)

    def tell(name: str, row: dict[str, Any]) -> None:
        if options.resamples:
            row["compared"] = compare(plans[name].origin, find_place(options.run, name), options.resamples)

    rows = follow_plans(plans, options.only, options.run, options.out, tell, epochs=options.epochs)
    print_table(rows, f"Multi30k, test_2016_flickr; {jax.devices()[0].device_kind}", SCORES)
    print_comparisons(rows)
    return 0


def print_comparisons(rows: Mapping[str, Any]) -> None:
    """A line for each pipeline that was compared with its origin."""
    for name, row in rows.items():
        if "compared" in row:
            found = row["compared"]
            print(f"{name}: BLEU {found['bleu']:.2f} ± {found['interval']:.2f}, p {found['p']:.3f}")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
