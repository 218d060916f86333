"""Parameters by path, as in `jaxaccel.trees`; a low-rank weight's factors count under the weight's own path too."""

from collections.abc import Iterable

from jaxaccel import trees
from jaxaccel.compress.selected import names_of
from jaxaccel.trees import Where


def selects(where: Where, path: str) -> bool:
    """Whether `where` selects `path`, or the low-rank weight whose factor that is."""
    return any(trees.selects(where, name) for name in names_of(path))


def check_where(where: Where, paths: Iterable[str], what: str) -> None:
    """Checks that every pattern of `where` selects one of `paths`.

    Raises:
      UserError: one selects none; it names the paths nearest to it.
    """
    trees.check_where(where, [name for path in paths for name in names_of(path)], what)
