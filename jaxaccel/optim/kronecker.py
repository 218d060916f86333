"""Kronecker factors: what Shampoo and SOAP keep of the covariance of a matrix's gradients.

The gradients G (m, n) of a matrix have a covariance of (mn, mn), too large to keep. Its Kronecker factors L ≈ E[G Gᵀ]
(m, m) and R ≈ E[Gᵀ G] (n, n) are not (Gupta et al. 2018, arXiv:1802.09568; Morwani et al. 2024, arXiv:2406.17748, on
what is lost).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

Sides = tuple[jax.Array | None, jax.Array | None]
"""For a matrix (m, n): an (m, m) array that belongs to its rows and an (n, n) one that belongs to its columns; None for
a side that is left alone."""

# A TPU's default would round the factors to bfloat16, whose small eigenvalues are then noise.
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix (m, n) that an array of `shape` is, see `columns_from`. A vector is (n, 1)."""
    cut = columns_from(shape)
    return math.prod(shape[:cut]), math.prod(shape[cut:])


def columns_from(shape: tuple[int, ...]) -> int:
    """The axis from which on the axes of an array of `shape` are the columns of a matrix.

    A convolution's kernel (h, w, in, out), four axes or more, becomes (h w in, out): the matrix that multiplies the
    image's patches. Three axes are cut in two where max(m, n) is least, so that attention's kernels, (width, heads,
    head_dim) and (heads, head_dim, width), become (width, width).
    """
    cuts = [len(shape) - 1] if len(shape) > 3 else range(1, max(len(shape), 2))
    return min(cuts, key=lambda i: max(math.prod(shape[:i]), math.prod(shape[i:])))


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32 at least: averages of many steps do not move in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def identities(x: jax.Array, max_size: int) -> Sides:
    """Identity matrices for the sides of `x` that get a factor: those of 2 to `max_size`, of true matrices."""
    rows, columns = matrix_shape(x.shape)
    matrix = min(rows, columns) > 1

    def side(size: int) -> jax.Array | None:
        return at_least_float32(jnp.eye(size, dtype=x.dtype)) if matrix and size <= max_size else None

    return side(rows), side(columns)


def zero_factors(x: jax.Array, max_size: int) -> Sides:
    """The factors before the first gradient of `x`."""
    return jax.tree.map(jnp.zeros_like, identities(x, max_size))


def average_factors(factors: Sides, grad: jax.Array, decay: float) -> Sides:
    """Exponential moving averages of G Gᵀ and Gᵀ G with one more gradient, which is in their dtype."""
    rows, columns = factors
    g = grad.reshape(matrix_shape(grad.shape))
    return (
        None if rows is None else decay * rows + (1 - decay) * _dot(g, g.T),
        None if columns is None else decay * columns + (1 - decay) * _dot(g.T, g),
    )


def multiply_sides(sides: Sides, x: jax.Array) -> jax.Array:
    """rows @ x @ columns, in the shape of `x`."""
    rows, columns = sides
    y = x.reshape(matrix_shape(x.shape))
    y = y if rows is None else _dot(rows, y)
    y = y if columns is None else _dot(y, columns)
    return y.reshape(x.shape)


def to_basis(bases: Sides, x: jax.Array) -> jax.Array:
    """Q_Lᵀ x Q_R: `x` in the coordinates of `bases`, whose columns are orthonormal."""
    rows, columns = bases
    return multiply_sides((None if rows is None else rows.T, columns), x)


def from_basis(bases: Sides, x: jax.Array) -> jax.Array:
    """Q_L x Q_Rᵀ: back from `to_basis`."""
    rows, columns = bases
    return multiply_sides((rows, None if columns is None else columns.T), x)


def inverse_roots(factors: Sides, damping: float) -> Sides:
    """Each factor to the power -1/(2k), where k of the two sides have one, up to a positive number.

    That is -1/4 for both, and -1/2 for one alone, so that the step's size does not depend on the gradient's. The
    largest eigenvalue is brought to 1 first and `damping` added to all: float32 does not resolve any that are much
    smaller than 1e-6 of it. By `eigh` and not by a coupled Newton iteration: it needs no more damping than that and has
    no iterations to run out of, and it is called once in many steps.
    """
    power = -1 / (2 * max(len(jax.tree.leaves(factors)), 1))

    def root(factor: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(factor)
        scale = jnp.maximum(values[-1], jnp.finfo(values.dtype).tiny)
        return _dot(vectors * (jnp.maximum(values / scale, 0) + damping) ** power, vectors.T)

    return jax.tree.map(root, factors)


def eigenvectors(factor: jax.Array) -> jax.Array:
    """The orthonormal eigenvectors of `factor` as columns, that of the largest eigenvalue first."""
    return jnp.linalg.eigh(factor)[1][:, ::-1]


def order_columns(factor: jax.Array, basis: jax.Array) -> jax.Array:
    """The columns of `basis` from the largest to the smallest Rayleigh quotient."""
    return jnp.argsort(-jnp.sum(basis * _dot(factor, basis), axis=0))


def power_iteration(factor: jax.Array, basis: jax.Array) -> jax.Array:
    """Takes a step of orthogonal iteration: turns `basis`, its columns in order, to the eigenvectors of `factor`."""
    return jnp.linalg.qr(_dot(factor, basis))[0]
