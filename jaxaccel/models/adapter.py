"""Flax modules, NNX or Linen, as pure functions of (params, state).

The trainer knows models only through `Model`: two pure functions. What a Flax module keeps besides its
parameters (BatchNorm statistics, say) is `state`; its random streams (dropout) are drawn anew from the key
of each call, so that they need no saving and depend on (seed, step) alone.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxaccel.errors import UserError

PyTree = Any


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    """key -> (params, state)."""
    apply: Callable[..., tuple[PyTree, PyTree]]
    """(params, state, *inputs, key, train) -> (outputs, new state).

    With ``method="encode"`` it calls that method of the Flax module rather than the module."""


def as_model(factory: Any, facts: Mapping[str, Any], inputs: tuple[PyTree, ...]) -> Model:
    """The pure functions of what `factory` makes.

    Args:
      factory: a Linen module, or a callable that returns a Linen or an NNX module, or a `Model`. It is called with
        those of `facts` (``classes``, ``channels``, ``image_size``, ...), ``facts``, ``inputs`` and ``rngs`` that its
        signature names.
      facts: what the data set says of itself.
      inputs: one batch's inputs to the model as `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: `factory` makes no Flax module, or does not take what it is given.
    """
    if isinstance(factory, linen.Module):
        return _linen(factory, inputs)
    taken = _taken(factory, {**facts, "facts": facts, "inputs": inputs})
    made: list[Any] = []

    def make() -> nnx.Module | None:
        made.append(factory(**taken, **_rngs(factory, jax.random.key(0))))
        return made[0] if isinstance(made[0], nnx.Module) else None

    try:
        nnx.eval_shape(make)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"the model cannot be made with {_named(taken)}: {_first_line(error)}") from error
    if isinstance(made[0], linen.Module):
        return _linen(made[0], inputs)
    if isinstance(made[0], nnx.Module):
        return _nnx(lambda key: factory(**taken, **_rngs(factory, key)))
    if isinstance(made[0], Model):
        return factory(**taken)  # anew: what was made above was only traced
    raise UserError(f"the recipe's model must make a Flax NNX or Linen module, not {type(made[0]).__name__}")


def takes_argument(factory: Any, name: str) -> bool:
    """Whether `factory` has an argument of that name that is still to be given."""
    return not isinstance(factory, linen.Module) and name in _free(factory)


def inference(model: Model) -> Callable[..., PyTree]:
    """A model as a function of its variables, ``{"params": ..., "model_state": ...}``, and inputs.

    ``method=NAME`` calls that method of the model.
    """

    def call(variables: PyTree, *inputs: PyTree, **method: str) -> PyTree:
        key = jax.random.key(0)  # nothing is drawn in inference, but the signature asks for one
        params, state = variables["params"], variables["model_state"]
        return model.apply(params, state, *inputs, key=key, train=False, **method)[0]

    return call


def abstract_variables(model: Model) -> tuple[PyTree, PyTree]:
    """The shapes and dtypes of (params, state), without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0))


def output_shape(model: Model, inputs: tuple[PyTree, ...]) -> PyTree:
    """Shapes and dtypes of the outputs for `inputs` (`jax.ShapeDtypeStruct`s).

    Raises:
      UserError: the model does not take such inputs.
    """
    try:
        params, state = abstract_variables(model)
        return jax.eval_shape(
            lambda p, s, *x: model.apply(p, s, *x, key=jax.random.key(0), train=True)[0],
            params, state, *inputs,
        )  # fmt: skip
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        shapes = ", ".join(str(x.shape) for x in jax.tree.leaves(inputs))
        raise UserError(
            f"the model does not take the data's batches of shape {shapes}: {_first_line(error)}"
        ) from error


def _nnx(make: Callable[[jax.Array], nnx.Module]) -> Model:
    def parts(key: jax.Array) -> tuple[Any, ...]:
        return nnx.split(make(key), nnx.Param, nnx.RngState, ...)

    graph, *shapes = nnx.eval_shape(lambda: parts(jax.random.key(0)))
    shape_params, shape_rngs, shape_state = shapes

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        _, params, _, state = parts(key)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def apply(
        params: PyTree, state: PyTree, *inputs: PyTree, key: jax.Array, train: bool, method: str = "__call__"
    ) -> tuple[PyTree, PyTree]:
        module = nnx.merge(
            graph, _filled(shape_params, params), _streams(shape_rngs, key), _filled(shape_state, state)
        )
        module.train() if train else module.eval()
        outputs = _find_method(module, method)(*inputs)
        _, _, _, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return outputs, nnx.to_pure_dict(state)

    return Model(init, apply)


def _filled(shapes: nnx.State, values: PyTree) -> nnx.State:
    state = jax.tree.map(lambda x: x, shapes)
    nnx.replace_by_pure_dict(state, values)
    return state


def _streams(shapes: nnx.State, key: jax.Array) -> nnx.State:
    """Random streams that start at `key`, each at its own fold, their counters at 0."""
    leaves, treedef = jax.tree.flatten(shapes)
    fresh = [
        _keys(jax.random.fold_in(key, i), x.shape)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else jnp.zeros(x.shape, x.dtype)
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, fresh)


def _keys(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`key`, or as many as scanned blocks have streams."""
    return jax.random.split(key, shape) if shape else key


def _linen(module: linen.Module, inputs: tuple[PyTree, ...]) -> Model:
    def mode(train: bool, method: str = "__call__") -> dict[str, Any]:
        names = inspect.signature(_find_method(module, method)).parameters
        # The two words that Linen modules use for it.
        return {
            name: value for name, value in {"train": train, "deterministic": not train}.items() if name in names
        }  # fmt: skip

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
        variables = module.init({"params": key, "dropout": key}, *zeros, **mode(False))
        return variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def apply(
        params: PyTree, state: PyTree, *inputs: PyTree, key: jax.Array, train: bool, method: str = "__call__"
    ) -> tuple[PyTree, PyTree]:
        variables, mutable = {"params": params, **state}, list(state) if train else False
        rngs = {"dropout": key} if train else {}
        found = module.apply(
            variables, *inputs, **mode(train, method), rngs=rngs, mutable=mutable, method=method
        )
        if not train:
            return found, state
        outputs, new = found
        return outputs, dict(new)

    return Model(init, apply)


def _find_method(module: Any, name: str) -> Callable[..., Any]:
    method = getattr(module, name, None)
    if not callable(method):
        raise UserError(
            f"the task needs a model with a method {name!r}, and {type(module).__name__} has none"
        )
    return method


def _taken(factory: Callable[..., Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those facts that the factory's signature names and that are not bound in it already."""
    names = _free(factory)
    return {name: value for name, value in facts.items() if name in names}


def _rngs(factory: Callable[..., Any], key: jax.Array) -> dict[str, Any]:
    return {"rngs": nnx.Rngs(key)} if "rngs" in _free(factory) else {}


def _free(factory: Callable[..., Any]) -> set[str]:
    """Names of the arguments that are left to give."""
    bound: set[str] = set()
    while isinstance(factory, functools.partial):
        bound |= set(factory.keywords)
        factory = factory.func
    # NNX's metaclass hides a class's own signature.
    made_by = factory.__init__ if inspect.isclass(factory) else factory
    return set(inspect.signature(made_by).parameters) - bound


def _named(taken: Mapping[str, Any]) -> str:
    told = [f"{name}={value}" for name, value in taken.items() if name not in ("facts", "inputs")]
    return ", ".join(told) or "no arguments"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
