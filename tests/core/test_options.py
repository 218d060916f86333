"""Options are checked by their annotations, in Python as on a command line."""

import dataclasses
import inspect
import pickle
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax
import numpy as np
import pytest
from annotated_types import Gt, Interval

import jaxaccel as ja
from jaxaccel import cli, transforms
from jaxaccel import compression as pipeline
from jaxaccel.compression import Fold, Pipeline, Step
from jaxaccel.core.options import Options, Share, annotations_of, check_value, checked, plain_type
from jaxaccel.errors import UserError, option
from jaxaccel.models import pretrained
from jaxaccel.tasks import Task
from jaxaccel.transforms import params as compress

# ---- one value ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "given", "taken"),
    [
        (int, np.int64(3), 3),
        (float, 2, 2),
        (float, np.float32(0.5), 0.5),
        (bool, np.bool_(True), True),
        (Path, "a/b", Path("a/b")),
        (tuple[float, ...], [1.0, 2.0], (1.0, 2.0)),
        (tuple[int, int], (1, 2), (1, 2)),
        (Mapping[str, float], {"a": np.float64(1.5)}, {"a": 1.5}),
        (Literal["a", "b"], "b", "b"),
        (Literal[4, 8], 8, 8),
        (float | None, None, None),
        (float | Literal["edge"], "edge", "edge"),
        (str | Sequence[str], ["a"], ("a",)),
        (Callable[..., Any], len, len),
        (Annotated[float, Interval(ge=0, lt=1)], 0, 0),
        (Any, object, object),
        (np.ndarray, "somebody else's class", "somebody else's class"),
    ],
)
def test_what_is_taken(annotation, given, taken):
    found = check_value("x", given, annotation)
    assert found == taken and type(found) is type(taken)


@pytest.mark.parametrize(
    ("annotation", "given", "says"),
    [
        (int, "64", "x must be a whole number, got '64'"),
        (int, 64.0, "x must be a whole number, got 64.0"),
        (int, True, "x must be a whole number, got True"),
        (float, "0.1", "x must be a number, got '0.1'"),
        (float, True, "x must be a number, got True"),
        (float, float("nan"), "x must be a finite number, got nan"),
        (float, np.float32("inf"), "x must be a finite number, got "),
        (bool, 1, "x must be True or False, got 1"),
        (str, 3, "x must be text, got 3"),
        (Path, 3, "x must be a path, got 3"),
        (
            Literal["cosine", "linear"],
            "cosin",
            "x must be cosine or linear, got 'cosin'; did you mean cosine?",
        ),
        (Literal[4, 8], 5, "x must be 4 or 8, got 5"),
        (Literal[1, 2], True, "x must be 1 or 2, got True"),
        (float | None, "x", "x must be a number, got 'x'"),
        (float | Literal["edge"], "egde", "x must be a number or edge, got 'egde'"),
        (tuple[float, ...], 1.0, "x must be a sequence, got 1.0"),
        (tuple[float, ...], "12", "x must be a sequence, got '12'"),
        (tuple[float, ...], (1.0, "2"), "x[1] must be a number, got '2'"),
        (tuple[int, int], (1, 2, 3), "x must be 2 values, got (1, 2, 3)"),
        (Mapping[str, float], {"a": "b"}, "x['a'] must be a number, got 'b'"),
        (Mapping[str, float], [1.0], "x must be a mapping from names to values, got [1.0]"),
        (Callable[..., Any], 3, "x must be a function, got 3"),
        (Annotated[float, Interval(ge=0, lt=1)], 1, "x must lie in [0, 1), got 1"),
        (Annotated[int, Interval(gt=0, le=9)], 0, "x must lie in (0, 9], got 0"),
        (Annotated[float, Gt(0)], 0.0, "x must be above 0, got 0.0"),
        (Annotated[float, Gt(0)] | None, -1, "x must be above 0, got -1"),
        (tuple[Share, ...], (0.5, 2.0), "x[1] must lie in [0, 1], got 2.0"),
    ],
)
def test_what_is_refused(annotation, given, says):
    with pytest.raises(ValueError) as caught:
        check_value("x", given, annotation)
    assert str(caught.value).startswith(says)


def test_traced_values_pass():
    jax.eval_shape(lambda x: check_value("x", x, Share), 2.0)


# ---- what an error says of its options ----------------------------------------------------------------------


def test_an_option_is_a_keyword_in_python_and_a_flag_on_a_command_line():
    error = UserError(
        f"go on with {option('resume', True)}, set {option('optimizer.clip_norm', 1)} or {option('run', 'DIR')}"
    )
    assert str(error) == "go on with resume=True, set optimizer.clip_norm=1 or run=DIR"
    assert error.as_flags() == "go on with --resume, set --optimizer.clip-norm 1 or --run DIR"
    assert error.options == ("resume", "optimizer.clip_norm", "run")
    assert error.under("training").options[1] == "training.optimizer.clip_norm"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_class_says_whose_option_it_is_until_its_place_is_known():
    with pytest.raises(UserError) as caught:
        ja.optim.Schedule(name="cosin")  # type: ignore[arg-type]
    error = caught.value
    assert str(error).startswith("Schedule: name must be constant, cosine,")
    assert error.as_flags() == str(error)  # made in somebody's file: no flag
    assert error.under("schedule").as_flags().startswith("--schedule.name must be constant")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@dataclasses.dataclass(frozen=True)
class Inner(Options):
    share_of_it: Share = 0.5
    """A share."""


@dataclasses.dataclass(frozen=True)
class Outer(Options):
    inner_part: Inner = Inner()
    names: tuple[str, ...] = ()
    """Names."""


@dataclasses.dataclass(frozen=True)
class Command:
    outer: Outer = Outer()


def test_the_command_line_names_the_flag():
    with pytest.raises(UserError) as caught:
        cli.parse_options("program", "", Command(), ["--outer.inner-part.share-of-it", "1.5"])
    assert caught.value.as_flags() == "--outer.inner-part.share-of-it must lie in [0, 1], got 1.5"
    assert str(caught.value) == "outer.inner_part.share_of_it must lie in [0, 1], got 1.5"


def test_fields_are_of_the_class_that_they_name():
    with pytest.raises(UserError, match=r"Outer: inner_part must be an Inner, got 0\.5"):
        Outer(inner_part=0.5)
    assert Outer(names=["a"]).names == ("a",)


def test_functions():
    @checked
    def f(x, *, mode: Literal["fast", "exact"] = "fast", count: int = 1):
        return x, mode, count

    assert f("anything", mode="exact", count=np.int32(3)) == ("anything", "exact", 3)
    with pytest.raises(UserError, match="f: mode must be fast or exact, got 'fsat'; did you mean fast"):
        f(1, mode="fsat")
    with pytest.raises(TypeError, match="unexpected keyword"):
        f(1, speed="fast")
    assert list(inspect.signature(f).parameters) == ["x", "mode", "count"]


# ---- every option there is ----------------------------------------------------------------------------------


def nonsense(annotation):
    """Values that no option of this kind may have."""
    import types
    from typing import Union, get_args, get_origin

    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    origin = get_origin(base)
    if origin is Literal:
        return ["nonsense", 10**6, object()]
    if origin in (Union, types.UnionType):
        each = [nonsense(kind) for kind in get_args(base) if kind is not type(None)]
        known = all(each)
        return [object()] if known else []
    found = {
        bool: ["yes", 2],
        int: ["64", 1.5, True],
        float: ["x", True, float("nan"), float("inf"), object()],
        str: [object(), 3],
        Path: [object(), 3],
    }.get(base, [])
    if origin in (tuple, Mapping):
        found = [object(), 3]
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return found + [-1e9 if base is float else -(10**9)] * bool(marks) if base in (int, float) else found


def public_dataclasses():
    import importlib
    import pkgutil

    import jaxaccel

    for module in pkgutil.walk_packages(jaxaccel.__path__, "jaxaccel."):
        if "builders" in module.name or module.name.endswith("__main__"):
            continue
        for name, thing in vars(importlib.import_module(module.name)).items():
            mine = isinstance(thing, type) and thing.__module__ == module.name and not name.startswith("_")
            if mine and dataclasses.is_dataclass(thing):
                yield thing


def options_of(thing):
    return [
        (name, value) for name, annotation in annotations_of(thing).items() for value in nonsense(annotation)
    ]


EVERY = {kind.__qualname__: kind for kind in public_dataclasses()}
OPTIONS = {
    name: kind for name, kind in EVERY.items() if issubclass(kind, Options) and not inspect.isabstract(kind)
}


def test_dataclasses_with_choices_are_options():
    """Whoever has a `Literal` has it checked."""

    def chooses(kind):
        return any("Literal[" in str(annotation) for annotation in annotations_of(kind).values())

    concrete = {name: kind for name, kind in EVERY.items() if not inspect.isabstract(kind)}
    assert {name for name, kind in concrete.items() if chooses(kind)} <= OPTIONS.keys()


@pytest.mark.parametrize("kind", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_field_refuses_nonsense(kind):
    stand_ins = {
        str: "x",
        int: 1,
        tuple[int, int]: (1, 1),
        Task: ja.tasks.ImageClassification(),
        Mapping[str, Step]: {"fold": Fold()},
    }
    required = {
        field.name: stand_ins.get(plain_type(annotations_of(kind)[field.name]), len)
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for name, value in options_of(kind):
        with pytest.raises(UserError) as caught:
            kind(**{**required, name: value})
        assert name in str(caught.value), (name, value)


def is_checkable(annotation):
    """Whether it is a number, a flag or a choice, or has one in it."""
    plain = plain_type(annotation)
    if get_origin(plain) in (Union, types.UnionType, tuple):
        return any(is_checkable(kind) for kind in get_args(plain) if kind is not ...)
    return get_origin(plain) is Literal or plain in (bool, int, float)


def public_functions():
    for place in (ja, ja.augment, ja.optim, transforms, compress, pretrained, pipeline):
        for name in place.__all__:
            thing = getattr(place, name)
            if inspect.isfunction(thing) and thing.__module__.startswith("jaxaccel."):
                own = [name for name, kind in annotations_of(thing).items() if is_checkable(kind)]
                if own:
                    yield thing.__qualname__, (thing, own)


def sample(annotation):
    """A value that may be given."""
    plain = plain_type(annotation)
    inner, origin = get_args(plain), get_origin(plain)
    if origin is Literal:
        return inner[0]
    if origin in (Union, types.UnionType):
        return sample(inner[0])
    if origin is tuple:
        return tuple(sample(kind) for kind in inner if kind is not ...)
    if isinstance(plain, type) and issubclass(plain, Options):
        return Pipeline({"fold": Fold()}) if plain is Pipeline else plain()
    if origin in (Mapping, Sequence, Iterable):
        return {} if origin is Mapping else ()
    return {int: 1, float: 0.5, bool: True, str: "x", Path: Path("x")}.get(plain, len)


FUNCTIONS = dict(public_functions())


def test_public_functions_check_their_options():
    unchecked = sorted(
        name for name, (function, _) in FUNCTIONS.items() if not hasattr(function, "__wrapped__")
    )
    assert not unchecked, f"give @checked to {unchecked}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_refuses_nonsense(name):
    function, own = FUNCTIONS[name]
    known, parameters = annotations_of(function), inspect.signature(function).parameters
    needed = {p.name: sample(known.get(p.name)) for p in parameters.values() if p.default is p.empty}
    required = {n: x for n, x in needed.items() if "VAR" not in parameters[n].kind.name}
    for option_name in own:
        if "VAR" in parameters[option_name].kind.name:
            continue
        for value in nonsense(known[option_name]):
            with pytest.raises(UserError) as caught:
                function(**{**required, option_name: value})
            assert option_name in str(caught.value), (option_name, value)


def test_a_mapping_of_arrays_is_not_read():
    class Lazy(dict):
        def __getitem__(self, name):
            raise AssertionError("read")

        items = values = __getitem__

    batch = Lazy(image=None)
    assert check_value("batch", batch, Mapping[str, jax.Array]) is batch
    assert check_value("args", {"momentum": 1}, Mapping[str, float]) == {"momentum": 1}
    with pytest.raises(UserError, match="momentum"):
        check_value("args", {"momentum": "much"}, Mapping[str, float])
