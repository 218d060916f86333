"""Parameters by path, as in `jaxaccel.core.trees`; factors of a low-rank weight count under its own path too."""

from collections.abc import Iterable

from jaxaccel.core import trees
from jaxaccel.core.trees import Where
from jaxaccel.transforms.params.selected import names_of


def selects(where: Where, path: str) -> bool:
    """Whether `where` selects `path`, or the low-rank weight whose factor that is."""
    return any(trees.selects(where, name) for name in names_of(path))


def check_where(where: Where, paths: Iterable[str], what: str) -> None:
    """Checks that every pattern of `where` selects one of `paths`.

    Raises:
      UserError: one selects none; it names the paths nearest to it.
    """
    trees.check_where(where, [name for path in paths for name in names_of(path)], what)
