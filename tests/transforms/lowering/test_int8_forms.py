"""Which form an int8 convolution takes on the CPU, and that it says why where it stays in float32."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxaccel.transforms.lowering import int8_forms

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def chosen(x, w, numbers=NHWC, strides=1, padding="SAME", choice="auto", backend="cpu", **options):
    def f(x, w):
        rank = len(x.shape) - 2
        return lax.conv_general_dilated(
            x, w, (strides,) * rank, padding, dimension_numbers=numbers, **options
        )

    (eqn,) = jax.make_jaxpr(f)(jnp.zeros(x, jnp.int8), jnp.zeros(w, jnp.int8)).eqns
    return int8_forms.choose_int8_form(eqn.params, *(v.aval for v in eqn.invars), backend, choice)


@pytest.mark.parametrize("copies_pay", [False, True])
def test_few_channels_go_by_the_version_of_jax(monkeypatch, copies_pay):
    monkeypatch.setattr(int8_forms, "COPIES_PAY", copies_pay)
    stem = chosen((1, 224, 224, 3), (7, 7, 3, 64), strides=2)
    narrow = chosen((1, 32, 32, 16), (3, 3, 16, 16))
    strided = chosen((1, 32, 32, 16), (3, 3, 16, 32), strides=2)
    if copies_pay:
        assert (stem[0], narrow[0], strided[0]) == ("space to depth", "patches", "patches")
    else:
        assert (stem[0], narrow[0], strided[0]) == ("float32",) * 3
        assert "before JAX 0.11" in narrow[1]


@pytest.mark.parametrize("x", [(1, 14, 14, 64), (0, 14, 14, 64), (16, 14, 14, 64)])
def test_many_channels(x):
    assert chosen(x, (3, 3, 64, 64))[0] == "xla"
    assert chosen(x, (1, 1, 64, 24), strides=2)[0] == ("matmul" if x[0] else "float32")


def test_one_dimension_is_computed_as_two():
    assert chosen((4, 50, 64), (3, 64, 64), ("NHC", "HIO", "NHC"))[0] == "channels last"


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        ((1, 14, 14, 512), (3, 3, 1, 512), {"feature_group_count": 512}, "grouped"),
        (
            (1, 14, 14, 64),
            (3, 3, 64, 64),
            {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
            "transposed",
        ),
        ((1, 64, 14, 14), (64, 64, 3, 3), {"numbers": NCHW}, "channels first"),
        ((1, 4, 4, 4, 64), (3, 3, 3, 64, 64), {"numbers": ("NDHWC", "DHWIO", "NDHWC")}, "3-D"),
        ((1, 28, 28, 1), (3, 3, 1, 32), {}, "too few"),
        ((1, 28, 28, 64), (3, 3, 64, 8), {}, "too few"),
    ],
)
def test_what_stays_in_float32_says_why(x, w, options, reason):
    form, why = chosen(x, w, **options)
    assert form == "float32" and reason in why
    assert chosen(x, w, choice="int8", **options) == ("xla", "")
    assert chosen(x, w, backend="tpu", **options) == ("xla", "")
