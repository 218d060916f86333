"""What training for quantization wins back: ResNet-20 with weights of few bits, with and without it.

    python experiments/qat_cifar10.py --weights DIR --downloads DIR

quantizes the published network (PTQ), fine-tunes it in the same numbers (QAT, `ja.fake_int8`), folds, quantizes and
tests that on all 10,000 images, and prints one table. As a control the same steps are done in float32, then quantized.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cifar10 import accuracy, images, inference, network
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxaccel as ja
from jaxaccel import augment, cli
from jaxaccel.core import runtime
from jaxaccel.models.adapter import Model

PLACES = ("weights", "downloads", "out")
"""Options that say where files are, which a record of the results leaves out."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, and how long."""

    weights: Path
    """Directory with resnet20-*.th."""
    downloads: Path | None = None
    """Directory with the files of CIFAR-10; not needed once the data set is prepared."""
    bits: int = 4
    steps: int = 400
    batch: int = 128
    learning_rate: float = 0.002
    control: bool = True
    """Also fine-tune as long in float32 and quantize that."""
    seed: int = 0
    out: Path | None = None
    """Also write the rows here, as JSON."""


def fine_tuned(
    options: Options,
    model: Model,
    variables: Any,
    data: tuple[np.ndarray, np.ndarray],
    transform: Callable,
    name: str,
) -> Any:
    """`variables` after some steps of momentum SGD on the transformed loss."""
    tx = optax.sgd(
        optax.cosine_decay_schedule(options.learning_rate, options.steps), momentum=0.9, nesterov=True
    )
    cropped = augment.chain(augment.horizontal_flip, partial(augment.pad_and_crop, padding=4))

    def loss(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = model.apply(params, state, x, key=jax.random.key(0), train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    @jax.jit
    def step(carry: Any, number: jax.Array, x: jax.Array, labels: jax.Array, index: jax.Array) -> Any:
        params, state, opt_state = carry
        key = jax.random.fold_in(jax.random.key(options.seed), number)
        batch = cropped(key, {"image": x, "label": labels, "index": index})
        grads, state = jax.grad(transform(loss), has_aux=True)(params, state, batch["image"], labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    x, labels = data
    order = np.random.default_rng(options.seed).permutation(len(x))
    carry = (variables["params"], variables["state"], tx.init(variables["params"]))
    for i in track(range(options.steps), name):
        rows = order[np.arange(i * options.batch, (i + 1) * options.batch) % len(x)]
        carry = step(carry, jnp.int32(i), x[rows], labels[rows], rows.astype(np.int32))
    return {"params": carry[0], "state": carry[1]}


def tested(options: Options, model: Model, variables: Any, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy of the folded and quantized network, int8 x int8 products in every layer."""
    g, folded = ja.fold(inference(model), variables, data[0][:1])
    return accuracy(ja.int8(g, lowering="int8"), ja.quantize(folded, bits=options.bits), *data)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment."""
    options = cli.parse_options("python experiments/qat_cifar10.py", __doc__ or "", Options, argv)
    runtime.setup()
    model, variables = network(20, options.weights)
    test, train = images("test", options.downloads), images("train", options.downloads)

    def qat(f: Callable) -> Callable:
        return ja.fake_int8(f, bits=options.bits, lowering="int8")

    trained = fine_tuned(options, model, variables, train, qat, "quantization-aware training")
    rows = {
        "float32": accuracy(inference(model), variables, *test),
        f"int{options.bits} weights, PTQ": tested(options, model, variables, test),
        f"int{options.bits} weights, QAT": tested(options, model, trained, test),
    }
    if options.control:
        control = fine_tuned(options, model, variables, train, lambda f: f, "float32 fine-tuning")
        rows[f"float32 fine-tuning, then int{options.bits} PTQ"] = tested(options, model, control, test)
    first, ptq, *_ = rows.values()
    table = Table(title=f"ResNet-20, CIFAR-10 test, {options.steps} steps of {options.batch}")
    table.add_column("network")
    for header in ("accuracy %", "loss recovered"):
        table.add_column(header, justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}", f"{(value - ptq) / (first - ptq):.0%}")
    Console().print(table)
    if options.out:
        made_with = {name: value for name, value in dataclasses.asdict(options).items() if name not in PLACES}
        record = {"versions": runtime.versions(), "options": made_with, "accuracy": rows}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
