"""Models that compute with the parameters of a packed file: thinner, low-rank or shared ones, to be trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.paths import flatten_by_path
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import Model, abstract_variables, as_model
from jaxaccel.transforms import compressed
from jaxaccel.transforms.params import trainable, with_trained
from jaxaccel.transforms.params.load import load as load_params

PyTree = Any


def packed(file: str | Path, model: Any, facts: Mapping[str, Any], inputs: tuple[PyTree, ...]) -> Model:
    """What `model` makes, on the parameters and state in `file` in place of its own.

    In a recipe: ``--model "packed(file='thin.safetensors', model=resnet56)"``. What trains is what may change without
    undoing the compression: dense arrays, both factors of low-rank ones, codebooks. Integers stay. Pruned weights stay
    zero under ``--sparse.method fixed``.

    Args:
      file: what `ja.params.save` wrote of ``{"params": ..., "model_state": ...}``.
      model: the factory of the model that they were compressed from, as `as_model` takes it.
      facts: what the data set says of itself.
      inputs: one batch's inputs as `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: the file is none, or was packed from another model.
    """
    base, stored = as_model(model, facts, inputs), load_params(file)
    params, state = check_stored(stored, base, file)

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        # XLA would compute at compile time, and slowly, all that an optimizer makes of constants.
        return jax.lax.optimization_barrier((trainable(params), state))

    def apply(
        trained: PyTree, state: PyTree, *inputs: PyTree, key: jax.Array, train: bool, **method: str
    ) -> tuple[PyTree, PyTree]:
        def computed(params: PyTree, state: PyTree, *inputs: PyTree) -> tuple[PyTree, PyTree]:
            return base.apply(params, state, *inputs, key=key, train=train, **method)

        return compressed(computed)(with_trained(params, trained), state, *inputs)

    return Model(init, apply)


def check_stored(stored: PyTree, model: Model, file: str | Path) -> tuple[PyTree, PyTree]:
    """(params, state) of a packed file, whose paths must be those of `model`; shapes may differ.

    Raises:
      UserError: they are not.
    """
    own = dict(zip(("params", "model_state"), abstract_variables(model), strict=True))
    if not isinstance(stored, dict) or not stored.keys() <= own.keys() or "params" not in stored:
        raise UserError(
            f"{file} holds no parameters and state of a model: pack {{'params': ..., 'model_state': ...}}"
        )
    both = {"params": stored["params"], "model_state": stored.get("model_state", {})}
    there = flatten_by_path(jax.tree.map(lambda x: 0, both, is_leaf=is_compressed))
    if odd := there.keys() ^ flatten_by_path(own).keys():
        name = min(odd)
        raise UserError(
            f"{file} was packed from another model: {name} is only in {'it' if name in there else 'the model'}"
        )
    return both["params"], both["model_state"]
