"""Hints where norms and distances are 0: finite gradients, and the formulas of the papers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.transforms.distill import _TERMS, soft_targets


def safe(x, by):
    return np.divide(x, by, out=np.zeros_like(x + 0 * by), where=by > 0)


def hint(a, b):
    size = np.mean(b**2)
    return np.mean((a - b) ** 2, tuple(range(1, a.ndim))) / (size if size > 0 else 1)


def attention(a, b):
    def normal(x):
        maps = np.mean(x**2, -1).reshape(len(x), -1)
        return safe(maps, np.linalg.norm(maps, axis=-1, keepdims=True))

    return np.sum((normal(a) - normal(b)) ** 2, -1)


def relation(a, b):
    def distances(x):
        x = x.reshape(len(x), -1)
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return safe(d, np.sum(d) / max(len(x) * (len(x) - 1), 1))

    gap = np.abs(distances(a) - distances(b))
    return np.mean(np.where(gap < 1, 0.5 * gap**2, gap - 0.5), -1)


A = np.random.default_rng(0).normal(size=(5, 3, 3, 4)).astype(np.float32)
B = np.random.default_rng(1).normal(size=(5, 3, 3, 4)).astype(np.float32)
TWICE = A[[0, 1, 1, 3, 0]]
CASES = {
    "plain": (A, B),
    "one example twice": (TWICE, B),
    "in both": (TWICE, B[[0, 1, 1, 3, 0]]),
    "all the same": (A[[2] * 5], B),
    "a batch of one": (A[:1], B[:1]),
    "equal networks": (A, A),
    "zeros of the student": (np.zeros_like(A), B),
    "zeros of the teacher": (A, np.zeros_like(B)),
    "zeros of both": (np.zeros_like(A), np.zeros_like(B)),
    "one example of zeros": (A * (np.arange(5) != 2)[:, None, None, None], B),
    "small": (1e-4 * A, 1e-4 * B),
    "tiny": (1e-12 * A, 1e-12 * B),
    "large": (1e12 * A, 1e12 * B),
}
REFERENCES = {"hint": hint, "attention": attention, "relation": relation}


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("case", CASES)
def test_values_are_right_and_gradients_finite(kind, case):
    a, b = (x.astype(np.float32) for x in CASES[case])
    found, pull = jax.vjp(lambda a: _TERMS[kind](a, jnp.asarray(b)), jnp.asarray(a))
    want = REFERENCES[kind](np.float64(a), np.float64(b))
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-6)
    (slope,) = pull(jnp.ones_like(found))
    assert np.isfinite(slope).all()
    if case == "equal networks":
        np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("case", ["plain", "one example twice", "one example of zeros", "small"])
def test_gradients_are_those_of_float64(kind, case):
    """By central differences of the reference, along directions that leave what is equal, or 0, as it is."""
    a, b = (np.float64(x.astype(np.float32)) for x in CASES[case])
    slope = jax.grad(lambda a: _TERMS[kind](a, jnp.float32(b)).sum())(jnp.float32(a))
    way = np.random.default_rng(2).normal(size=a.shape)
    if case == "one example twice":
        way = way[[0, 1, 1, 3, 0]]
    way = way * (a != 0) * np.abs(a).max()
    step = 1e-5
    want = (REFERENCES[kind](a + step * way, b).sum() - REFERENCES[kind](a - step * way, b).sum()) / (
        2 * step
    )
    np.testing.assert_allclose(np.sum(np.float64(slope) * way), want, rtol=2e-3, atol=1e-5)


def test_a_term_without_weight_adds_nothing_to_the_gradient():
    def f(p, x):
        return x @ p["kernel"]

    p, x = {"kernel": jnp.zeros((3, 4))}, jnp.zeros((2, 3))
    d = ja.distill(
        f, f, hints=[ja.transforms.Hint("kernel", "kernel", k, 0.0) for k in ("attention", "relation")]
    )
    slope = jax.grad(lambda p: d(p, p, x)[1].sum())(p)["kernel"]
    np.testing.assert_array_equal(slope, 0)


def test_classes_that_the_teacher_excludes_add_nothing():
    student, teacher = jnp.asarray([[1.0, 2.0, 0.5]]), jnp.asarray([[0.3, -jnp.inf, 1.0]])
    p = np.exp([0.3, 1.0]) / np.exp([0.3, 1.0]).sum()
    q = np.exp([1.0, 2.0, 0.5]) / np.exp([1.0, 2.0, 0.5]).sum()
    value, slope = jax.value_and_grad(lambda s: soft_targets(s, teacher, 1.0).sum())(student)
    np.testing.assert_allclose(value, (p * np.log(p / q[[0, 2]])).sum(), rtol=1e-5)
    np.testing.assert_allclose(slope[0], q - [p[0], 0, p[1]], atol=1e-6)
