"""Quantizes the networks by Qwix; for precision."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx

from benchmarks.networks import Network, make_module
from benchmarks.variants import Variant


def make_variants(network: Network, variables: Mapping[str, Any]) -> Iterator[Variant | tuple[str, str]]:
    """Yields Qwix's variants of the same module with the same weights; (name, error) where it cannot do the network.

    Qwix rules match modules by path: one rule for all of them is what its documentation starts with.
    """
    from qwix import QuantizationRule  # pyright: ignore[reportMissingImports]

    for name, rule in (
        ("Qwix W8A8", QuantizationRule(weight_qtype="int8", act_qtype="int8")),
        ("Qwix weight-only", QuantizationRule(weight_qtype="int8")),
    ):
        try:
            graph, state = nnx.split(_quantize(network, variables, rule))
        except (TypeError, ValueError) as error:
            yield name, f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        yield Variant(name, "qwix", "int8", partial(_merged, graph), state)


def _merged(graph: Any, state: Any, x: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(x)


def _quantize(network: Network, variables: Mapping[str, Any], rule: Any) -> nnx.Module:
    from qwix import PtqProvider, quantize_model  # pyright: ignore[reportMissingImports]

    model: Any = make_module(network, variables)
    x = network.examples(1, seed=2)
    if network.name != "lstm":
        return quantize_model(model, PtqProvider([rule]), x)
    # Qwix replaces parameters as it meets them, which the scan of `nnx.RNN` forbids: cell and head one by one.
    carry = model.rnn.cell.initialize_carry(x[:, 0].shape, nnx.Rngs(0))
    model.rnn.cell = quantize_model(model.rnn.cell, PtqProvider([rule]), carry, x[:, 0])
    model.head = quantize_model(model.head, PtqProvider([rule]), x[:, 0])
    return model
