"""Shampoo and SOAP against NumPy in float64, and what a refresh computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxaccel.optim.kronecker import identities, matrix_shape
from jaxaccel.optim.shampoo import scale_by_shampoo, shampoo
from jaxaccel.optim.soap import scale_by_soap, soap

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B1, B2, EPS, DAMPING = 0.9, 0.95, 1e-8, 1e-6
MAX_SIZE = 20
SHAPES = {
    "dense": {"kernel": (4, 3), "bias": (3,)},
    "conv": {"kernel": (2, 2, 1, 3)},
    "long": {"kernel": (3, 40)},
}


def gradients(steps):
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda s: rng.normal(size=s), SHAPES, is_leaf=lambda s: isinstance(s, tuple))
        for _ in range(steps)
    ]


def sides(matrix):
    """Which sides get a factor, written down by hand for `SHAPES`."""
    return [size <= MAX_SIZE and min(matrix.shape) > 1 for size in matrix.shape]


class NumpyShampoo:
    def __init__(self, every):
        self.every, self.t, self.m, self.v, self.factors, self.roots = every, 0, 0, 0, None, None

    def update(self, gradient):
        g = gradient.reshape(-1, gradient.shape[-1])  # (h w in, out); a vector is one row
        self.m, self.v = B1 * self.m + (1 - B1) * g, B2 * self.v + (1 - B2) * g**2
        outer = g @ g.T, g.T @ g
        old = self.factors or (0, 0)
        self.factors = [B2 * f + (1 - B2) * o for f, o in zip(old, outer, strict=True)]
        if self.t % self.every == 0:
            order = 2 * sum(sides(g))
            self.roots = [
                self.root(f, order) if has else np.eye(len(f))
                for f, has in zip(self.factors, sides(g), strict=True)
            ]
        self.t += 1
        adam = self.m / (1 - B1**self.t) / (np.sqrt(self.v / (1 - B2**self.t)) + EPS)
        if not any(sides(g)):
            return adam.reshape(gradient.shape)
        step = self.roots[0] @ self.m @ self.roots[1]
        return (step * np.linalg.norm(adam) / np.linalg.norm(step)).reshape(gradient.shape)

    @staticmethod
    def root(factor, order):
        factor = factor / np.linalg.norm(factor, 2) + DAMPING * np.eye(len(factor))
        u, s, _ = np.linalg.svd(factor)
        return u @ np.diag(s ** (-1 / order)) @ u.T


class NumpySoap:
    def __init__(self, every):
        self.every, self.t, self.m, self.v, self.factors, self.q = every, 0, 0, 0, [0, 0], None

    def update(self, gradient):
        g = gradient.reshape(-1, gradient.shape[-1])
        step = np.zeros_like(g)
        if self.t:
            left, right = self.q
            self.m = B1 * self.m + (1 - B1) * g
            self.v = B2 * self.v + (1 - B2) * (left.T @ g @ right) ** 2
            m, v = left.T @ self.m @ right / (1 - B1**self.t), self.v / (1 - B2**self.t)
            step = left @ (m / (np.sqrt(v) + EPS)) @ right.T
        self.factors = [B2 * f + (1 - B2) * o for f, o in zip(self.factors, (g @ g.T, g.T @ g), strict=True)]
        if self.t == 0:
            self.q = [
                np.linalg.svd(f)[0] if has else np.eye(len(f))
                for f, has in zip(self.factors, sides(g), strict=True)
            ]
        elif self.t % self.every == 0:
            for axis, has in enumerate(sides(g)):
                if has:
                    f, q = self.factors[axis], self.q[axis]
                    by = np.argsort(-np.diag(q.T @ f @ q))
                    self.v = np.take(self.v, by, axis)
                    self.q[axis] = np.linalg.qr(f @ q[:, by])[0]
        self.t += 1
        return step.reshape(gradient.shape)


@pytest.mark.parametrize(
    "reference, tx",
    [
        (NumpyShampoo, scale_by_shampoo(B1, B2, EPS, update_every=3, max_size=MAX_SIZE, damping=DAMPING)),
        (NumpySoap, scale_by_soap(B1, B2, EPS, update_every=3, max_size=MAX_SIZE)),
    ],
    ids=["shampoo", "soap"],
)
def test_numpy_agrees_in_float64(reference, tx):
    grads = gradients(8)
    numpy = jax.tree.map(lambda _: reference(3), grads[0])
    with jax.enable_x64(True):
        state = jit(tx.init)(grads[0])
        update = jit(tx.update)
        for step, grad in enumerate(grads):
            updates, state = update(grad, state)
            expected = jax.tree.map(lambda r, g: r.update(g), numpy, grad)
            jax.tree.map(
                lambda a, b, step=step: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9, err_msg=str(step)),
                updates, expected,
            )  # fmt: skip


@pytest.mark.parametrize("tx", [scale_by_shampoo(update_every=3), scale_by_soap(update_every=3)])
def test_between_refreshes_nothing_is_decomposed(tx):
    grads = [jax.tree.map(np.float32, g) for g in gradients(7)]
    state = jit(tx.init)(grads[0])
    program = jax.make_jaxpr(tx.update)(grads[0], state)
    always = "".join(str(eqn) for eqn in program.eqns if eqn.primitive.name != "cond")
    assert "eigh" in str(program) and "eigh" not in always and "householder" not in always
    update, kept = jit(tx.update), []
    for grad in grads:
        _, new = update(grad, state)
        same = jax.tree.map(np.array_equal, state[-1], new[-1])
        kept.append(all(jax.tree.leaves(same)))
        state = new
    assert kept == [False, True, True, False, True, True, False]


@pytest.mark.parametrize(
    "shape, matrix",
    [
        ((3, 3, 16, 32), (144, 32)),
        ((7, 7, 3, 64), (147, 64)),
        ((3, 3, 1, 384), (9, 384)),  # depthwise
        ((192, 3, 64), (192, 192)),  # query of attention
        ((3, 64, 192), (192, 192)),
        ((1, 197, 192), (197, 192)),
        ((5,), (1, 5)),
        ((), (1, 1)),
    ],
)
def test_which_matrix_an_array_is(shape, matrix):
    assert sorted(matrix_shape(shape)) == sorted(matrix)


def test_which_sides_have_factors():
    def shapes(shape, max_size):
        found = jax.eval_shape(lambda: identities(jnp.zeros(shape), max_size))
        return tuple(side and side.shape for side in found)

    assert shapes((3, 3, 4, 8), 36) == ((36, 36), (8, 8))
    assert shapes((3, 3, 4, 8), 35) == (None, (8, 8))
    assert shapes((40, 50), 35) == (None, None)
    assert shapes((7,), 35) == shapes((1, 1, 7), 35) == shapes((), 35) == (None, None)


def test_shampoo_passes_adam_where_the_axes_of_curvature_are_not_those_of_the_coordinates():
    """tr(Wᵀ A W B) with eigenvalues from 1e-4 to 1."""
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2))
    a, b = (jnp.float32(q @ np.diag(np.logspace(-2, 0, 8)) @ q.T) for q in (u, v))
    start = jnp.float32(rng.normal(size=(8, 8)))

    def loss(w):
        return jnp.sum(w * (a @ w @ b))

    def reached(tx):
        def body(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(body, (start, tx.init(start)), length=100)
        return loss(w)

    ours, *adam = jit(
        lambda: (
            [reached(shampoo(optax.linear_schedule(0.3, 0.0, 100), update_every=5))]
            + [reached(optax.adam(optax.linear_schedule(rate, 0.0, 100))) for rate in (0.1, 0.3, 1.0)]
        )
    )()
    assert float(ours) < 0.3 * min(map(float, adam))


def test_soap_does_not_see_a_rotation():
    """Of gradients U G Vᵀ the updates are U (those of G) Vᵀ; Adam has other ones."""
    rng = np.random.default_rng(2)
    u, v = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    grads = rng.normal(size=(7, 4, 4))

    def updates(tx, grads):
        def body(state, grad):
            update, state = tx.update(grad, state, grad)
            return state, update

        return jax.lax.scan(body, tx.init(grads[0]), grads)[1]

    with jax.enable_x64(True):
        for tx, same in ((soap(0.1, update_every=2), True), (optax.adam(0.1), False)):
            plain, rotated = jit(
                lambda tx=tx: (updates(tx, jnp.asarray(grads)), updates(tx, u @ grads @ v.T))
            )()
            assert np.allclose(u @ plain @ v.T, rotated, atol=1e-8) == same
