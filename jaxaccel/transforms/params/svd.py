"""Singular value decompositions: whole ones of small matrices, the largest values of large ones."""

import math

import numpy as np

MAX_EXACT_SIZE = 2048
"""Above so many rows and columns singular values are found by random projections: half as many, or as asked for."""


def truncated_svd(
    matrix: np.ndarray, rank: int = 0, energy: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(u, s, v) and the sum of all squares; of a large matrix as many as that rank and that energy need."""
    if min(matrix.shape) <= MAX_EXACT_SIZE:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        return u, s, v, _squares(s)
    total = _squares(matrix)
    most = math.ceil(matrix.size / sum(matrix.shape))  # with more, factors are no smaller than the matrix
    count = min(max(MAX_EXACT_SIZE // 2, rank), most)
    u, s, v = randomized_svd(matrix, count)
    while _squares(s) < energy * total and count < most:
        count = min(2 * count, most)
        u, s, v = randomized_svd(matrix, count)
    return u, s, v, total


def _squares(x: np.ndarray) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def randomized_svd(
    matrix: np.ndarray, rank: int, iterations: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest `rank` singular values and vectors of a matrix, by random projection.

    Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), algorithm 5.1 on the range of algorithm 4.4.

    Returns:
      (u, s, v) as `numpy.linalg.svd` has them.
    """
    rng = np.random.default_rng(0)
    q = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], rank + 10), dtype=matrix.dtype))[0]
    for _ in range(iterations):
        q = np.linalg.qr(matrix.T @ q)[0]
        q = np.linalg.qr(matrix @ q)[0]
    u, s, v = np.linalg.svd(q.T @ matrix, full_matrices=False)
    return (q @ u)[:, :rank], s[:rank], v[:rank]
