"""Narrow products and convolutions in the forms for GPUs have the values that NumPy computes.

On an attached GPU (`JAXACCEL_TEST_PLATFORM=cuda`) they run there, else the same forms run on the CPU, which checks the
references. The numbers are such that every type holds them (`exact.py`), so limits are those of float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ACTIVATIONS, CONVS, PRODUCTS
from exact import Convolution, check, convolve, draw, note

import jaxaccel as ja

ON_A_GPU = jax.default_backend() == "gpu"
ROUNDING = 1e-5
"""Sums of float32 in another order."""
LIMITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Convolutions of these types round their result to it, once."""
int8, float8 = (partial(transform, backend="gpu") for transform in (ja.int8, ja.float8))
WAYS = {
    "int8 dynamic": (127, 127, lambda f, params, x: int8(f)),
    "int8 static": (127, 127, lambda f, params, x: int8(f, calibration=ja.calibrate(f, params, [x]))),
    "int8 weight-only": (127, 127, lambda f, params, x: int8(f, activations="none")),
    "int4 dynamic": (127, 7, lambda f, params, x: int8(f)),
    "int4 weight-only": (127, 7, lambda f, params, x: int8(f, activations="none")),
    "bfloat16": (127, 127, lambda f, params, x: ja.bfloat16(f, backend="gpu")),
    "float16": (127, 127, lambda f, params, x: ja.float16(f, backend="gpu")),
    "float8": (7, 7, lambda f, params, x: float8(f, emulate=not ON_A_GPU)),
}
"""The largest whole numbers of inputs and of weights, and what is made of a function."""


def compute(way, f, params, x):
    """What the transformed function gives, and the weights that it stands for."""
    transform = WAYS[way][-1](f, params, x)
    if way.startswith("int"):
        channels = (0,) if params["w"].shape[:2] == (16, 32) else None  # OIHW
        params = ja.quantize(params, where="w", bits=int(way[3]), channels=channels)
        return jax.jit(transform)(params, x), np.asarray(params["w"].materialize())
    return jax.jit(transform)(params, x), params["w"]


def find_summed(subscripts):
    """The axes of both operands over which is summed."""
    (lhs, rhs), out = subscripts.partition("->")[0].split(","), subscripts.partition("->")[2]
    return [[axis for axis, letter in enumerate(side) if letter not in out] for side in (lhs, rhs)]


@pytest.mark.parametrize("subscripts, lhs, rhs", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("way", WAYS)
def test_products(way, subscripts, lhs, rhs, request):
    (x_limit, w_limit, _), (x_axes, w_axes) = WAYS[way], find_summed(subscripts)
    x, w = draw(0, lhs, x_limit, x_axes), draw(1, rhs, w_limit, w_axes, 2.0**-7)

    def f(params, x):
        return jnp.einsum(subscripts, x, params["w"])

    got, weights = compute(way, f, {"w": w}, x)
    check(request, got, np.einsum(subscripts, np.float64(x), weights, optimize=True), ROUNDING)


@pytest.mark.parametrize("x, w, options", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("float8", "int4 weight-only")])
def test_convolutions(way, x, w, options, request):
    x_limit, w_limit, _ = WAYS[way]
    reference = Convolution(options, x, w)
    x, w = draw(0, x, x_limit, range(1, len(x))), draw(1, w, w_limit, range(len(w) - 1), 2.0**-7)

    def f(params, x):
        return convolve(options, x, params["w"])

    got, weights = compute(way, f, {"w": w}, x)
    check(request, got, reference.forward(x, weights), LIMITS.get(way, ROUNDING))


@pytest.mark.parametrize("subscripts, lhs, rhs", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("way", ["int8 attention", "bfloat16", "float16", "float8"])
def test_products_of_activations(way, subscripts, lhs, rhs, request):
    limit, axes = WAYS[way][0] if way in WAYS else 127, find_summed(subscripts)
    a, b = (draw(i, *shape) for i, shape in enumerate(zip((lhs, rhs), (limit, limit), axes, strict=True)))

    def f(params, a, b):
        return jnp.einsum(subscripts, a, b) * params["w"].sum()

    params = {"w": jnp.full((2, 2), 0.25)}  # some transformations want parameters
    transform = int8(f, attention=True) if way not in WAYS else WAYS[way][-1](f, params, a)
    got = jax.jit(transform)(params, a, b)
    check(request, got, np.einsum(subscripts, np.float64(a), b, optimize=True), ROUNDING)


@pytest.mark.parametrize("tokens", [16, 197])
def test_attention(tokens, request):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, tokens, 3, 64), np.float32)

    def attend(xp, q, k, v):
        scores = xp.einsum("bqhd,bkhd->bhqk", q, k) / 8
        weights = xp.exp(scores - scores.max(-1, keepdims=True))
        return xp.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)

    transform = int8(lambda params, *args: attend(jnp, *args), attention=True)
    want = attend(np, *(np.float64(array) for array in (q, k, v)))
    check(request, jax.jit(transform)({}, q, k, v), want, 0.06)  # activations are rounded


@pytest.mark.parametrize("way", ["int8 dynamic", "int8 weight-only", "bfloat16", "float16"])
def test_kernels_that_are_mapped(way, request):
    shape, kernel = (2, 9, 9, 32), (3, 3, 32, 16)
    x = draw(0, (3, *shape), 127, range(2, 5))
    w = draw(1, (3, *kernel), 127, range(1, 4), 2.0**-7)

    def f(params, x):
        return convolve({}, x, params["w"])

    params = {"w": w}
    if way.startswith("int8"):
        params = jax.vmap(partial(ja.quantize, where="w"))(params)
    got = jax.jit(jax.vmap(WAYS[way][-1](f, params, x)))(params, x)
    reference = Convolution({}, shape, kernel)
    want = np.stack([reference.forward(*pair) for pair in zip(x, w, strict=True)])
    check(request, got, want, LIMITS.get(way, ROUNDING))


def give_integers(x, w, options, low):
    """A convolution of int8 as XLA has it, and by NumPy."""
    rng = np.random.default_rng(0)
    operands = [rng.integers(low, 128, shape).astype(np.int8) for shape in (x, w)]
    f = partial(convolve, {**options, "preferred_element_type": jnp.int32})
    return np.asarray(jax.jit(f)(*operands)), Convolution(options, x, w).forward(*operands)


PROBES = {
    "groups": ((2, 8, 8, 32), (3, 3, 8, 48), {"feature_group_count": 4}, -127),
    "depthwise": ((2, 8, 8, 32), (3, 3, 1, 32), {"feature_group_count": 32}, -127),
    "sums beyond 2^24": ((1, 7, 7, 512), (3, 3, 512, 64), {}, 100),
    "dilated": (*CONVS["dilated"], -127),
    "3-D": (*CONVS["3-D"], -127),
}
"""What the rules avoid (openxla/xla#49123), or rest on."""


@pytest.mark.parametrize("x, w, options, low", PROBES.values(), ids=PROBES)
def test_what_xla_itself_makes_of_integers(x, w, options, low, request):
    """Only a note: nothing of the package computes these so, but for sums beyond 2^24."""
    try:
        got, want = give_integers(x, w, options, low)
    except jax.errors.JaxRuntimeError as error:
        note(request, compiles=False, says=str(error)[:300])
        assert ON_A_GPU
        pytest.xfail(f"XLA does not compile it: {str(error)[:100]}")
    wrong = int((got != want).sum())
    note(request, compiles=True, wrong=wrong, of=want.size, largest=float(np.abs(want).max()))
    if wrong:
        assert ON_A_GPU
        pytest.xfail(f"{wrong} of {want.size} values are wrong")
