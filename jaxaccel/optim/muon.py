"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), Optax's, for kernels of any rank."""

import inspect
from typing import Any

import jax
import optax
import optax.contrib

from jaxaccel.core.paths import path_text, selects
from jaxaccel.optim.kronecker import columns_from

PyTree = Any

ADAM = ("**/{head,embed,embedding,positions,class_token}/**",)
"""What Adam updates although it has two axes or more: the last layer, and what is looked up."""


DECIDED = ("adam_learning_rate", "adam_weight_decay", "muon_weight_dimension_numbers")
"""Arguments of Optax's that `muon` decides."""


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    **options: Any,
) -> optax.GradientTransformation:
    """`optax.contrib.muon` on every kernel as a matrix, (inputs, outputs); all else is Adam's, Nesterov momentum
    included (`nesterov`), at the same rate and with the same weight decay. `scale_by_path` gives parts other rates.

    A convolution's (H, W, in, out) is (H W in, out); of the heads of attention those axes are joined that make the
    matrix most nearly square. `optax.contrib.muon` alone takes arrays of two axes only.
    """
    directions = optax.contrib.muon(1.0, muon_weight_dimension_numbers=matrix_axes, **options)
    return optax.chain(
        directions,
        optax.scale(-1.0),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def matrix_axes(params: PyTree) -> PyTree:
    """Which axes of a parameter are inputs and which outputs; None for what is no matrix."""

    def leaf(path: tuple[Any, ...], x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if x.ndim < 2 or selects(ADAM, path_text(path)):
            return None
        cut = columns_from(x.shape)
        return optax.contrib.MuonDimensionNumbers(tuple(range(cut)), tuple(range(cut, x.ndim)))

    return jax.tree_util.tree_map_with_path(leaf, params)


_theirs = inspect.signature(optax.contrib.muon)
muon.__signature__ = _theirs.replace(  # type: ignore[attr-defined]
    parameters=[p for name, p in _theirs.parameters.items() if name not in DECIDED]
)
