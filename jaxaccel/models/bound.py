"""A model in inference with its variables bound: what a task decodes with, and which methods it needs for that."""

import functools
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


class Bound:
    """Calls a model as it is, ``apply(x)``, and each of its methods by name, ``apply.encode(x)``.

    A method is that of the Flax module, with the same parameters, precision and transformations as a call. Batch
    statistics are those of training and nothing is drawn. Caches are arguments and results: nothing is kept between
    calls.
    """

    def __init__(self, run: Callable[..., PyTree], *variables: PyTree) -> None:
        """Binds the first arguments of `run`, which takes ``method=NAME`` where NAME is not the call itself."""
        self._run = functools.partial(run, *variables)

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Returns the model's outputs for `inputs`."""
        return self._run(*inputs)

    def __getattr__(self, name: str) -> Callable[..., PyTree]:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(self._run, method=name)


def find_methods(
    use: Callable[[Bound, PyTree], PyTree], run: Callable[..., PyTree], variables: PyTree, batch: PyTree
) -> tuple[str, ...]:
    """Names of the methods of a model that ``use(apply, batch)`` calls, which is traced and not computed.

    Args:
      use: for instance what a task predicts.
      run: as `Bound` takes it.
      variables: its first argument, or their shapes and dtypes.
      batch: shapes and dtypes.
    """
    found: set[str] = set()

    def recorded(*arguments: PyTree, **method: str) -> PyTree:
        found.update(method.values())
        return run(*arguments, **method)

    jax.eval_shape(lambda variables, batch: use(Bound(recorded, variables), batch), variables, batch)
    return tuple(sorted(found))
