"""Gradients through narrow products and convolutions in the forms for GPUs, against those of NumPy.

`test_gpu_values.py` says where they run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CONVS, PRODUCTS
from exact import Convolution, check, convolve, draw, note

import jaxaccel as ja

ON_A_GPU = jax.default_backend() == "gpu"
OWN = "gpu" if ON_A_GPU else None
"""XLA:CPU compiles gradients in bfloat16 of its own forms alone."""
STOCHASTIC = 0.02
"""Relative error of cotangents that are rounded at random to 255 steps."""
WAYS = {
    "int8": (127, lambda f: ja.int8(f, train=True, key=jax.random.key(0), backend="gpu")),
    "bfloat16": (127, partial(ja.bfloat16, backend=OWN)),
    "float16": (127, partial(ja.float16, backend=OWN)),
    "float8": (7, partial(ja.float8, backend="gpu", emulate=not ON_A_GPU)),
}
"""The largest whole number, and what is made of a function."""


def differentiate(way, f, w, x, g):
    """Gradients by the weights and by the input of the sum of g times the result."""
    narrow = WAYS[way][1](f)
    return jax.jit(jax.grad(lambda params, x: (narrow(params, x) * g).sum(), (0, 1)))({"w": w}, x)


def check_gradients(request, way, got, want, limit):
    for name, a, b in zip(("w", "x"), (got[0]["w"], got[1]), want, strict=True):
        if way != "int8":
            check(request, a, b, limit)
            continue
        error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        note(request, by=name, relative_error=error, limit=STOCHASTIC)
        assert error <= STOCHASTIC


@pytest.mark.parametrize("subscripts, lhs, rhs", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_products(way, subscripts, lhs, rhs, request):
    limit = WAYS[way][0]
    inputs, _, out = subscripts.partition("->")
    left, right = inputs.split(",")
    x, w = draw(0, lhs, limit, range(len(lhs))), draw(1, rhs, limit, range(len(rhs)), 2.0**-7)
    shape = jax.eval_shape(partial(jnp.einsum, subscripts), x, w).shape
    g = draw(2, shape, limit, range(len(shape)))
    got = differentiate(way, lambda params, x: jnp.einsum(subscripts, x, params["w"]), w, x, g)
    einsum = partial(np.einsum, optimize=True)
    want = (
        einsum(f"{left},{out}->{right}", np.float64(x), g),
        einsum(f"{out},{right}->{left}", g, np.float64(w)),
    )
    check_gradients(request, way, got, want, 1e-5)


@pytest.mark.parametrize("x, w, options", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("way", ["int8", "bfloat16", "float16"])
def test_gradients_of_convolutions(way, x, w, options, request):
    reference = Convolution(options, x, w)
    x, w = draw(0, x, 127, range(len(x))), draw(1, w, 127, range(len(w)), 2.0**-7)
    shape = jax.eval_shape(partial(convolve, options), x, w).shape
    g = draw(2, shape, 127, range(len(shape)))
    got = differentiate(way, lambda params, x: convolve(options, x, params["w"]), w, x, g)
    check_gradients(request, way, got, reference.gradients(x, w, g), {"bfloat16": 2.0**-8}.get(way, 2.0**-11))
