"""k-means of one-dimensional values, where clusters are intervals and their sums differences of cumulative ones."""

import dataclasses

import numpy as np

MAX_ROUNDS = 300
STARTS = 4
"""How many draws of first centers are tried at least."""
DRAWS = 512
"""How many centers are drawn in all: with few of them more depends on where they start, and a start costs less."""


def k_means(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` centers, sorted, float32, that lie near to `values` (n,) in squares.

    Lloyd's rounds (Lloyd 1982, doi:10.1109/TIT.1982.1056489) from centers that are drawn far apart (k-means++, Arthur &
    Vassilvitskii 2007), several times with the same seed each. A cluster that becomes empty takes the value that is
    farthest from its center. The same values give the same centers.
    """
    unique = np.unique(values)
    if unique.size <= count:
        return unique.astype(np.float32)
    ordered = _Ordered.of(values)
    rng = np.random.default_rng(0)
    starts = max(STARTS, DRAWS // count)
    tried = [ordered.settled(ordered.first(count, rng)) for _ in range(starts)]
    centers = min(tried, key=lambda c: ordered.errors(c).sum())
    return centers.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Ordered:
    """Sorted values with the sums that make a round as cheap as its number of clusters."""

    values: np.ndarray
    """(n,) float64, rising."""
    sums: np.ndarray
    """(n + 1,): of the first 0, 1, ... values."""
    squares: np.ndarray
    """(n + 1,): of their squares."""

    @classmethod
    def of(cls, values: np.ndarray) -> "_Ordered":
        ordered = np.sort(values).astype(np.float64)
        return cls(
            ordered,
            np.concatenate([[0.0], np.cumsum(ordered)]),
            np.concatenate([[0.0], np.cumsum(ordered**2)]),
        )

    def edges(self, centers: np.ndarray) -> np.ndarray:
        """Where the clusters of sorted centers begin, and the end of the last: (k + 1,)."""
        cuts = np.searchsorted(self.values, (centers[1:] + centers[:-1]) / 2)
        return np.concatenate([[0], cuts, [self.values.size]])

    def errors(self, centers: np.ndarray) -> np.ndarray:
        """The sum of squared distances in each cluster, (k,)."""
        edges = self.edges(centers)
        sums, squares, sizes = np.diff(self.sums[edges]), np.diff(self.squares[edges]), np.diff(edges)
        return np.maximum(squares - 2 * centers * sums + sizes * centers**2, 0)

    def first(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` of the values, each drawn by its squared distance from those before it."""
        centers = self.values[rng.integers(self.values.size, size=1)]
        while centers.size < count:
            errors = self.errors(centers)
            cluster = int(np.searchsorted(np.cumsum(errors), rng.random() * errors.sum(), side="right"))
            cluster = min(cluster, centers.size - 1)
            start, stop = self.edges(centers)[[cluster, cluster + 1]]
            within = np.cumsum((self.values[start:stop] - centers[cluster]) ** 2)
            at = int(np.searchsorted(within, rng.random() * within[-1], side="right"))
            centers = np.sort(np.append(centers, self.values[start + min(at, stop - start - 1)]))
        return centers

    def settled(self, centers: np.ndarray) -> np.ndarray:
        """The centers after so many of Lloyd's rounds that they no longer move."""
        for _ in range(MAX_ROUNDS):
            edges = self.edges(centers)
            sizes = np.diff(edges)
            means = np.diff(self.sums[edges])[sizes > 0] / sizes[sizes > 0]
            while means.size < centers.size:
                means = np.sort(np.append(means, self._farthest(means)))
            if np.array_equal(means, centers):
                break
            centers = means
        return centers

    def _farthest(self, centers: np.ndarray) -> float:
        """The end of the cluster with the largest error that lies farther from its center."""
        worst = int(np.argmax(self.errors(centers)))
        start, stop = self.edges(centers)[[worst, worst + 1]]
        ends = self.values[[start, stop - 1]]
        return float(ends[np.argmax(np.abs(ends - centers[worst]))])
