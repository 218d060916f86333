"""Augmentations draw and compute the same bits where JAX has 64-bit numbers enabled."""

import jax
import numpy as np
import pytest
from jax.extend import core as jcore
from references import KEY, apply, make_batch
from test_every import EVERY

CHEAP = ("alternating_flip", "cutmix", "cutout", "horizontal_flip", "mixup", "pad_and_crop", "random_erasing")


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if isinstance(value, (jcore.Jaxpr, jcore.ClosedJaxpr)):
                yield from equations(getattr(value, "jaxpr", value))


def traced(name, dtype):
    """The random bits that the operation asks for, its floating-point dtypes, and its results."""
    closed = jax.make_jaxpr(lambda key, batch: dict(EVERY[name](key, batch)))(KEY, make_batch(dtype=dtype))
    eqns = list(equations(closed.jaxpr))
    bits = [(e.params["bit_width"], e.params["shape"]) for e in eqns if e.primitive.name == "random_bits"]
    wide = {str(e) for e in eqns for v in e.outvars if str(getattr(v.aval, "dtype", "")) == "float64"}
    return bits, wide, [(x.shape, x.dtype) for x in closed.out_avals]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_program_is_the_same(name, dtype):
    bits, _, results = traced(name, dtype)
    with jax.enable_x64(True):
        bits64, wide, results64 = traced(name, dtype)
    assert bits64 == bits and results64 == results and not wide


@pytest.mark.parametrize("name", CHEAP)
def test_so_are_its_results(name):
    batch = make_batch()
    want = apply(EVERY[name], batch)
    with jax.enable_x64(True):
        found = apply(EVERY[name], batch)
    for entry, value in want.items():
        np.testing.assert_array_equal(found[entry], value)
