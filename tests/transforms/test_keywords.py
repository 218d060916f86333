"""Parameters by keyword and in another place than the first, for every transformation."""

import jax
import numpy as np
import pytest

import jaxaccel as ja

P = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
X = jax.random.normal(jax.random.key(1), (3, 8))
Q = ja.quantize(P)


def first(p, x):
    return x @ p["kernel"]


def second(x, p):
    return x @ p["kernel"]


RANGES = ja.calibrate(first, P, [X])
MAKERS = {
    "bfloat16": (
        lambda f, n: ja.bfloat16(f, lowering="bfloat16", argnums=n),
        P,
    ),
    "float16": (lambda f, n: ja.float16(f, lowering="float16", argnums=n), P),
    "float8": (lambda f, n: ja.float8(f, emulate=True, argnums=n), P),
    "int8": (lambda f, n: ja.int8(f, argnums=n), Q),
    "static int8": (lambda f, n: ja.int8(f, calibration=RANGES, argnums=n), Q),
    "int8 in training": (lambda f, n: ja.int8(f, train=True, key=jax.random.key(0), argnums=n), P),
    "fake_int8": (lambda f, n: ja.fake_int8(f, argnums=n), P),
    "static fake_int8": (lambda f, n: ja.fake_int8(f, calibration=RANGES, argnums=n), P),
    "observed fake_int8": (lambda f, n: ja.fake_int8(f, observe=True, argnums=n), P),
    "compressed": (lambda f, n: ja.transforms.compressed(f, argnums=n), Q),
    "retarget": (lambda f, n: ja.retarget(f, argnums=n), P),
    "features": (lambda f, n: ja.transforms.features(f, ["kernel"], argnums=n), P),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_call_by_keyword_is_the_call_by_position(name):
    make, params = MAKERS[name]
    want = jax.tree.leaves(make(first, 0)(params, X))
    calls = [
        make(first, 0)(p=params, x=X),
        make(first, 0)(x=X, p=params),
        make(first, 0)(params, x=X),
        make(second, 1)(X, params),
        make(second, -1)(X, params),
        make(second, 1)(X, p=params),
        make(second, 1)(p=params, x=X),
    ]
    for found in calls:
        for a, b in zip(jax.tree.leaves(found), want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_ranges_and_moments_of_parameters_in_another_place():
    assert ja.calibrate(second, X, [(P,)], argnums=1).ranges == RANGES.ranges
    np.testing.assert_array_equal(
        ja.transforms.input_covariances(second, X, [(P,)], argnums=1)["kernel"],
        ja.transforms.input_covariances(first, P, [X])["kernel"],
    )


def test_gradients_of_a_call_by_keyword():
    found = jax.grad(lambda p: ja.fake_int8(first)(x=X, p=p).sum())(P)
    np.testing.assert_array_equal(
        found["kernel"], jax.grad(lambda p: ja.fake_int8(first)(p, X).sum())(P)["kernel"]
    )


def test_a_call_without_the_parameters_is_told():
    with pytest.raises(ja.UserError, match="rounds argument 1 of f, which this call leaves out"):
        ja.fake_int8(second, argnums=1)(X)


def test_parameters_in_several_arguments():
    """Each is rounded as if it stood alone; one that holds nothing to round stays as it is."""

    def f(first, x, second, shift):
        return jax.nn.relu(x @ first["kernel"]) @ second["kernel"] + shift["bias"]

    other, shift = {"kernel": jax.random.normal(jax.random.key(2), (4, 2))}, {"bias": np.ones(2, np.float32)}
    want = ja.int8(f, argnums=(0, 2, 3))(Q, X, ja.quantize(other), shift)
    fake = ja.fake_int8(f, argnums=(0, 2, 3))
    for found in (fake(P, X, other, shift), fake(P, X, shift=shift, second=other)):
        np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.abs(ja.fake_int8(f)(P, X, other, shift) - want).max() > 1e-4  # the second one stays as it is
    np.testing.assert_array_equal(
        fake(P, X, other, shift), ja.fake_int8(f, argnums=(0, -2))(P, X, other, shift)
    )
    gradients = jax.grad(lambda p, q: fake(p, X, q, shift).sum(), (0, 1))(P, other)
    assert all(np.isfinite(g["kernel"]).all() and np.any(g["kernel"]) for g in gradients)
    with pytest.raises(ja.UserError, match=r"where='.*kernle' matches none"):
        ja.fake_int8(f, "**/kernle", argnums=(0, 2))(P, X, other, shift)
