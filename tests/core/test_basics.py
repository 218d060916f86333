"""calls, trees, metrics: the small things below everything."""

from functools import partial

import jax.numpy as jnp
import pytest

from jaxaccel import augment, models
from jaxaccel.core.call_text import parse, render
from jaxaccel.core.paths import matches
from jaxaccel.errors import UserError
from jaxaccel.tasks.metrics import Mean, add
from jaxaccel.training import run_plan
from jaxaccel.training.function_names import NAMES


@pytest.mark.parametrize(
    "text",
    [
        "resnet20",
        "pad_and_crop(padding=4)",
        "affine(rotation=10.0, scale=(0.9, 1.1))",
        "jaxaccel.models.layers.pooling.max_pool_2x2",
        "ConvNet(hidden=0, widths=(8, 16))",
    ],
)
def test_a_call_survives_text(text):
    assert render(parse(text, NAMES), NAMES) == text


def test_parse_binds_keywords():
    function = parse("pad_and_crop(padding=4, mode='reflect')", NAMES)
    assert isinstance(function, partial)
    assert function.func is augment.pad_and_crop
    assert function.keywords == {"padding": 4, "mode": "reflect"}


@pytest.mark.parametrize(
    "text, says",
    [
        ("resnet21", "did you mean resnet"),
        ("resnet20(", "write it as NAME"),
        ("f(3)", "write it as NAME"),
        ("f(x=__import__('os'))", "write it as NAME"),
        ("no_such_package.f", "cannot import"),
        ("(lambda: 0)()", "write it as NAME"),
    ],
)
def test_parse_refuses(text, says):
    with pytest.raises(UserError, match=says):
        parse(text, NAMES)


def test_names_are_models_and_augmentations():
    assert NAMES["resnet20"] is models.resnet20
    assert NAMES["mixup"] is augment.mixup
    assert "chain" not in NAMES


@pytest.mark.parametrize(
    "where, path, expected",
    [
        ("**/kernel", "stem/conv/kernel", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "stem/kernel_ema", False),
        ("*/kernel", "stem/conv/kernel", False),
        ("blocks/*/mlp/**", "blocks/3/mlp/up/kernel", True),
        ("**/{kernel,embedding}", "a/embedding", True),
        ("**/{kernel,embedding}", "a/bias", False),
        ("head.kernel", "headXkernel", False),
    ],
)
def test_where(where, path, expected):
    assert matches(where, path) is expected


def test_mean_leaves_out_what_the_mask_leaves_out():
    mean = Mean.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0]))
    assert float(mean.value()) == 2.0
    assert float(Mean.of(jnp.zeros(2), jnp.zeros(2)).value()) == 0.0


def test_means_add_before_they_divide():
    a = Mean.of(jnp.array([1.0]), jnp.ones(1))
    b = Mean.of(jnp.array([4.0, 4.0, 4.0]), jnp.ones(3))
    assert float(add([{"x": a}, {"x": b}])["x"].value()) == 3.25


@pytest.mark.parametrize("per_call", [1, 3, 8])
@pytest.mark.parametrize("done", [0, 10, 44, 99])
def test_calls_cover_every_step_once(per_call, done):
    cuts = run_plan.list_cuts(steps=100, interval=21)
    assert cuts == [21, 42, 63, 84, 100]
    calls = run_plan.cut_into_calls(cuts, per_call, done)
    assert [step for call in calls for step in call] == list(range(done, 100))
    assert {call.stop for call in calls} >= {cut for cut in cuts if cut > done}
    if done == 0:
        later = run_plan.cut_into_calls(cuts, per_call, calls[5].start)
        assert later == calls[5:]  # resumed where it stopped: the very same calls


def test_an_evaluation_just_before_the_end_is_left_out():
    assert run_plan.list_cuts(steps=842, interval=105)[-2:] == [735, 842]
    assert run_plan.list_cuts(steps=3, interval=105) == [3]
