"""Matrix products by oneDNN against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaccel.core import kernels
from tests.core.kernels import reference
from tests.core.kernels.reference import count_calls, needs_kernels

TOLERANCES = {"float32": 1e-6, "bfloat16": 1e-2}
CASES = {
    "ab,bc->ac": ((5, 7), (7, 3)),
    "ba,bc->ac": ((7, 5), (7, 3)),
    "ab,cb->ac": ((5, 7), (3, 7)),
    "ba,cb->ac": ((7, 5), (3, 7)),
    "b,bc->c": ((7,), (7, 3)),
    "ab,b->a": ((5, 7), (7,)),
    "zab,zbc->zac": ((2, 5, 7), (2, 7, 3)),
    "zba,zcb->zac": ((2, 7, 5), (2, 3, 7)),
    "azb,bcz->zac": ((5, 2, 7), (7, 3, 2)),
    "yzabc,yzcbd->yzad": ((2, 3, 4, 5, 6), (2, 3, 6, 5, 7)),
    "nhwc,cd->nhwd": ((2, 3, 4, 5), (5, 6)),
    "bqhd,bkhd->bhqk": ((2, 5, 3, 4), (2, 6, 3, 4)),
}


def make_case(equation):
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.normal(size=shape).astype(np.float32) for shape in CASES[equation])
    (names, more), _ = equation.split("->")[0].split(","), None
    out = equation.split("->")[1]
    batch = [a for a in names if a in more and a in out]
    summed = [a for a in names if a in more and a not in out]
    pick = lambda axes: tuple(tuple(side.index(a) for a in axes) for side in (names, more))  # noqa: E731
    numbers = (pick(summed), pick(batch))
    params = jax.make_jaxpr(lambda a, b: jax.lax.dot_general(a, b, numbers))(lhs, rhs).jaxpr.eqns[0].params
    expected = np.einsum(equation, lhs.astype(np.float64), rhs.astype(np.float64))
    # dot_general's order: batch, what is left of the left operand, of the right one.
    left = [a for a in names if a not in more] + [a for a in more if a not in names]
    return params, lhs, rhs, np.transpose(expected, [out.index(a) for a in [*batch, *left]])


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("equation", CASES)
def test_values_and_gradients(equation, dtype):
    params, lhs, rhs, expected = make_case(equation)
    f = lambda a, b: kernels.multiply(params, a, b, dtype)  # noqa: E731
    plain = lambda a, b: jax.lax.dot_general_p.bind(a, b, **params)  # noqa: E731
    out, pull = jax.vjp(f, lhs, rhs)
    assert out.dtype == jnp.float32
    ct = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    rows = [(out, expected), *zip(pull(ct), jax.vjp(plain, lhs, rhs)[1](ct), strict=True)]
    for got, e in rows:
        np.testing.assert_allclose(got, e, rtol=0, atol=TOLERANCES[dtype] * np.abs(e).max())
    # The gradient of a product with a vector is one of two vectors, which has no sum.
    calls = 1 if 1 in (lhs.ndim, rhs.ndim) else 2
    assert count_calls(lambda a, b: jax.vjp(f, a, b)[1](ct), lhs, rhs) == calls


@needs_kernels
def test_vmap():
    params, lhs, rhs, expected = make_case("ab,bc->ac")
    f = jax.vmap(lambda a, b: kernels.multiply(params, a, b), (0, None))
    np.testing.assert_allclose(f(np.stack([lhs, -lhs]), rhs)[1], -expected, atol=1e-5)


def test_without_the_kernels(monkeypatch):
    reference.pretend(monkeypatch, "", "not installed: do this")
    params, lhs, rhs, expected = make_case("zba,zcb->zac")
    assert not kernels.supports_product(params, lhs, rhs)
    np.testing.assert_allclose(kernels.multiply(params, lhs, rhs), expected, atol=1e-5)
