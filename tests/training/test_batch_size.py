"""The largest batch whose step fits, chosen by the compiler's own count."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel.core import runtime
from jaxaccel.distributed import make_mesh, placed
from jaxaccel.errors import UserError
from jaxaccel.optim import Optimizer
from jaxaccel.training import batch_size
from jaxaccel.training.feed import open_feeds
from jaxaccel.training.problem import Problem
from jaxaccel.training.programs import Programs
from jaxaccel.training.recipe import Phases, Recipe
from jaxaccel.training.recipe_file import from_json, to_json
from jaxaccel.training.run_log import RunLog
from jaxaccel.training.run_setup import set_up_run


class Mlp(nnx.Module):
    def __init__(self, *, classes, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, x):
        x = jax.image.resize(x, (x.shape[0], 8, 8, 1), "nearest")
        return self.head(jax.nn.relu(self.hidden(x.reshape(x.shape[0], -1))))


RECIPE = Recipe(
    name="auto", model=Mlp, batch_size="auto", epochs=1, eval_every=0.5, data=ja.training.Data(name="digits"),
    optimizer=Optimizer("sgd", 0.1), steps_per_call=1,
)  # fmt: skip
EXAMPLES = 1347


def begin(recipe=RECIPE):
    mesh = make_mesh(recipe.mesh)
    first = batch_size.begin_batch_size(recipe, mesh, Path("nowhere"), resume=False)
    return set_up_run(Problem(first), mesh, Path("nowhere"))


COUNTED = {}
COUNT = batch_size.count_bytes


@pytest.fixture(autouse=True)
def count_once(monkeypatch):
    """Each program is compiled for its memory once for all tests."""

    def count(setup):
        key = repr(setup.recipe)
        COUNTED[key] = COUNTED.get(key) or COUNT(setup)
        return COUNTED[key]

    monkeypatch.setattr(batch_size, "count_bytes", count)


@pytest.fixture
def needs(count_once):
    """The bytes that batches of the recipe need."""
    setup = begin()
    other = (setup.problem.with_batch_size(size) for size in (64, 128))
    setups = [set_up_run(problem, setup.mesh, setup.directory) for problem in other]
    return {x.recipe.batch_size: batch_size.count_bytes(x) for x in setups}


# ---- which size ---------------------------------------------------------------------------------------------


def test_sizes_are_doubled_from_the_smallest_on_up_to_the_split():
    assert batch_size.list_sizes(1, 10) == [1, 2, 4, 8]
    assert batch_size.list_sizes(3, 24) == [3, 6, 12, 24]
    assert batch_size.list_sizes(16, 5) == [16]  # each device needs one
    assert batch_size.list_sizes(1, 10**9)[-1] == batch_size.MAX_AUTO == 32768


SIZES = batch_size.list_sizes(1, 10**9)


@pytest.mark.parametrize("fixed", [0, 1, 50, 5000])
@pytest.mark.parametrize("each", [1e-3, 0.3, 1, 7])
@pytest.mark.parametrize("compiler_gives_up", [False, True])
def test_the_largest_that_fits_is_found_by_few_measurements(fixed, each, compiler_gives_up):
    for room in (0.9, 1, 60, 66.5, 1000, 5100, 1e9):

        def need(size, room=room):
            exact = fixed + each * size
            return math.inf if compiler_gives_up and exact > room else exact

        known = batch_size.find_largest(SIZES, need, room)
        fitting = [size for size in SIZES if need(size) <= room]
        assert [size for size in known if need(size) <= room][-1:] == fitting[-1:]
        assert len(known) <= (7 if compiler_gives_up or not fitting else 4)
        assert fitting or 1 in known


def test_what_was_estimated_too_low_or_too_high_is_measured():
    def bent(size):
        return 100 + size + (300 if size >= 64 else 0)  # more from 64 on than the sizes below it tell

    known = batch_size.find_largest(SIZES, bent, 430)
    assert max(size for size in known if known[size] <= 430) == 32 and known[64] == 464
    # 256 is estimated to need 5% more than there is, and does not.
    known = batch_size.find_largest(SIZES, {**{x: x for x in SIZES}, 256: 240}.__getitem__, 244)
    assert max(size for size in known if known[size] <= 244) == 256


@pytest.mark.parametrize(
    ("chosen", "sizes", "known", "room", "says"),
    [
        (512, SIZES, {16: 1.6e9, 512: 61.2e9, 1024: 118e9}, 79.1e9,
         "batch size 512: the largest power of two whose step fits (61.2 of 79.1 GB; 1024 would need 118 GB)"),
        (512, SIZES, {256: 31e9, 512: 61e9}, 79.1e9,
         "batch size 512: the largest power of two whose step fits (61 of 79.1 GB; 1024 would need about 121 GB)"),
        (24, [3, 6, 12, 24, 48], {24: 2e6, 48: math.inf}, 3e6,
         "batch size 24: the largest power of two times 3 whose step fits (2 of 3 MB; 48 does not compile for it)"),
        (512, [256, 512], {512: 2e6}, 3e9,
         "batch size 512: the largest power of two within the 1,000 training examples (its step takes 0.002 of 3 GB)"),
        (512, [256, 512], {512: 2e6}, 3e6,
         "batch size 512: the largest power of two within the 1,000 training examples (its step takes 2 of 3 MB)"),
    ],
)  # fmt: skip
def test_the_choice_is_told_in_one_line(chosen, sizes, known, room, says):
    assert batch_size.explain(chosen, sizes, known, room, 1000) == says


# ---- what a size needs --------------------------------------------------------------------------------------


def test_exactly_the_largest_power_that_fits_is_chosen(needs):
    assert needs[128] > 1.3 * needs[64]
    for limit, size in ((needs[128] - 1, 64), (needs[128], 128)):
        setup, line = batch_size.choose_batch_size(begin(), limit=limit)
        assert setup.recipe.batch_size == setup.plan.phases[0].batch_size == size
        assert line.startswith(f"batch size {size}: the largest power of two whose step fits (")
        assert f"; {2 * size} would need" in line


def test_parts_to_accumulate_divide_the_batch_which_is_evaluated_whole(needs):
    recipe = dataclasses.replace(RECIPE, optimizer=dataclasses.replace(RECIPE.optimizer, accumulate=3))
    setup, line = batch_size.choose_batch_size(begin(recipe), limit=2 * needs[128])
    assert setup.recipe.batch_size in (96, 192, 384) and "the largest power of two times 3 whose" in line
    programs = Programs(setup, batch_size.describe_feeds(setup))
    evaluation = programs.compile_evaluation()
    state = batch_size.local_bytes(placed(setup.state, setup.shardings))
    data = sum(batch_size.local_bytes(x.arrays) for x in (programs.feeds.train, *programs.feeds.held_out))
    alone = batch_size.need_of(evaluation) - batch_size.argument_bytes(evaluation)
    assert batch_size.count_bytes(setup) >= alone + state + data


def test_resident_data_counts_and_so_does_the_largest_phase():
    setup = begin()
    resident = batch_size.count_bytes(setup)
    streamed = dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, feed="stream"))
    data = EXAMPLES * (8 * 8 + 4) + 450 * (8 * 8 + 4)  # images of 8 x 8 bytes, int32 labels
    assert resident - batch_size.count_bytes(begin(streamed)) == pytest.approx(data, rel=0.05)
    grows = dataclasses.replace(RECIPE, epochs=2, phases=Phases(at=(0.5,), image_size=(4, 16)))
    phased = begin(grows)
    call = batch_size.find_heaviest_call(phased, Programs(phased, batch_size.describe_feeds(phased)))
    assert phased.plan.phase(call.start).image_size == 16 and batch_size.count_bytes(phased) > resident


def test_the_program_is_that_of_the_run(monkeypatch, tmp_path):
    texts = []
    compile_program = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile",
        lambda self, *rest: texts.append(self.as_text()) or compile_program(self, *rest),
    )  # fmt: skip
    setup = begin()
    COUNT(setup)
    log = RunLog(tmp_path, steps=1, epoch=float, done=0, show=False)
    programs = Programs(setup, open_feeds(setup, log))
    programs.compile_call(batch_size.find_heaviest_call(setup, programs))
    assert len(texts) == 2 and texts[0] == texts[1]  # so that the compile cache has it


# ---- a run --------------------------------------------------------------------------------------------------


def test_a_run_records_the_number_and_goes_on_with_it(tmp_path, monkeypatch, needs, capsys):
    monkeypatch.setattr(runtime, "free_memory", lambda device: math.ceil(needs[128] / 0.9))
    recipe = dataclasses.replace(RECIPE, epochs=0.3, eval_every=0.1)
    whole = ja.train(recipe, run=tmp_path / "whole")
    assert "batch size 128: the largest power of two whose step fits (" in capsys.readouterr().out
    assert json.loads((tmp_path / "whole/recipe.json").read_text())["recipe"]["batch_size"] == 128
    assert ja.load(tmp_path / "whole").recipe.batch_size == 128
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    last = max((tmp_path / "part/checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)
    (tmp_path / "part/result.json").unlink()
    monkeypatch.setattr(runtime, "free_memory", lambda device: 10**12)  # more would fit now
    part = ja.train(recipe, run=tmp_path / "part", resume=True)
    assert "resuming auto at step" in capsys.readouterr().out
    assert part.summary["state_sha256"] == whole.summary["state_sha256"]
    again = ja.train(dataclasses.replace(recipe, batch_size=128), run=tmp_path / "given")
    assert again.summary["state_sha256"] == whole.summary["state_sha256"]


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "free_memory", lambda device: 100_000)
    with pytest.raises(UserError) as error:
        ja.train(RECIPE, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    says = error.value.as_flags()
    assert says.startswith("a batch of 1, the smallest, does not fit: its step takes ")
    assert "which has room for 90 kB: take a smaller model, --remat nothing_saveable, " in says
    assert says.endswith("--precision bfloat16, or split parameters with --mesh.fsdp")
    monkeypatch.setattr(runtime, "free_memory", lambda device: None)
    with pytest.raises(UserError, match="cpu does not say how much memory it has: give batch_size a number"):
        ja.train(RECIPE, run=tmp_path / "run")


def test_a_run_that_is_there_is_told_before_anything_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    monkeypatch.setattr(batch_size, "count_bytes", lambda setup: pytest.fail("it was compiled"))
    with pytest.raises(UserError, match="holds a run already"):
        ja.train(RECIPE, run=tmp_path / "run")
    with pytest.raises(UserError, match="nothing to resume"):
        ja.train(RECIPE, run=tmp_path / "none", resume=True)


# ---- the option ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("autoo", "batch_size must be a whole number or auto, got 'autoo'; did you mean auto?"),
        (0, "batch_size must be at least 1 or auto, got 0"),
        (1.5, "batch_size must be a whole number or auto, got 1.5"),
    ],
)
def test_the_option_is_checked(value, says):
    with pytest.raises(UserError) as error:
        dataclasses.replace(RECIPE, batch_size=value)
    assert str(error.value) == f"Recipe: {says}"


def test_batches_of_phases_are_given_or_chosen():
    with pytest.raises(UserError, match=r"phases.batch_size names the batches of all parts: leave out"):
        dataclasses.replace(RECIPE, phases=Phases(at=(0.5,), batch_size=(32, 64)))


def test_it_is_read_again_and_never_taken_for_a_number():
    recipe = dataclasses.replace(ja.load_recipe("digits"), batch_size="auto")
    values = json.loads(json.dumps(to_json(recipe)))
    assert values["batch_size"] == "auto" and from_json(values).batch_size == "auto"
    with pytest.raises(UserError, match="batch_size='auto' is chosen when a run trains: give a number here"):
        Problem(RECIPE).model()


# ---- several devices ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(told):
    """What batch_size_program.py found out in a process with eight devices."""
    return told(Path(__file__).with_name("batch_size_program.py"))


def test_the_batch_of_several_devices_is_larger_and_divides(report):
    two, three, replicas = (report[name]["size"] for name in ("data=2", "data=3", "replicas"))
    assert two % 2 == 0 and two & (two - 1) == 0
    assert three % 3 == 0 and three // 3 & (three // 3 - 1) == 0
    assert replicas < two < 1024  # the program of both replicas counts


def test_what_one_of_the_devices_needs_decides(report):
    for found in report.values():
        assert found["need"] <= found["limit"] < found["next"]
