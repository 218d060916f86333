"""A function and its weights as an ONNX model: `to_onnx`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export

from jaxaccel.core import kernels
from jaxaccel.core.interpret import Transformation, is_compressed
from jaxaccel.core.interpret.compressed import as_shape
from jaxaccel.core.interpret.jaxprs import Place, split_consts
from jaxaccel.core.options import checked
from jaxaccel.core.paths import parameter_path
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.exporter import Exporter
from jaxaccel.deployment.onnx.graph import drop_unread
from jaxaccel.deployment.onnx.passes import simplify
from jaxaccel.deployment.onnx.rules import elementwise, indexing, products, reductions, shapes, spectra
from jaxaccel.deployment.onnx.rules import loops as loops  # fills LOOPS
from jaxaccel.deployment.onnx.rules.integers import Integers
from jaxaccel.deployment.onnx.serialize import import_onnx, write_model
from jaxaccel.errors import UserError
from jaxaccel.transforms.calibrate import Calibration
from jaxaccel.transforms.int8 import Activations

PyTree = Any
OLDEST_OPSET = 21
"""The first one whose DequantizeLinear has a scale for each block."""


@checked
def to_onnx(
    f: Callable[..., PyTree],
    weights: PyTree,
    inputs: Sequence[PyTree],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    activations: Activations | None = None,
    calibration: Calibration | None = None,
    symbolic_batch: bool = True,
    opset: int = OLDEST_OPSET,
) -> Any:
    """Writes ``f(weights, *inputs)`` as an ONNX model (https://onnx.ai/onnx/operators), its weights as constants.

    Each primitive of the program is written by a rule. What depends on the weights alone is computed now.
    LayerNorm, softmax and GELU become the operators of these names, BatchNorm moves into the convolution before it.
    Quantized weights stay integers: with a `calibration` their products are written as QuantizeLinear and
    DequantizeLinear around them (QDQ), with the scales that ``int8(f, calibration=...)`` has and int32 biases. Float16
    and bfloat16 become float32.

    Args:
      f: a pure function of arrays, in inference, such as ``run.function`` of a `Trained`. Not a transformed one: what
        `int8` does is told by `weights`, `calibration` and `activations`.
      weights: its first argument; leaves may be compressed arrays, such as those of `quantize`.
      inputs: the other arguments, arrays or `jax.ShapeDtypeStruct`s in pytrees; of arrays only shape and dtype count.
      input_names: of the arrays of `inputs`, in the order of ``jax.tree.leaves``; by default ``input_0`` and so on, or
        ``input`` for a single one.
      output_names: of the arrays of the result; by default ``output_0`` and so on, or ``output``.
      activations: of products with quantized weights, as for `int8`: ``dynamic`` has one scale for each array (not
        one for each row, which ONNX lacks), ``none`` multiplies floats with dequantized weights.
      calibration: ranges by `calibrate` for the same f.
      symbolic_batch: the first axes of the inputs are one size that is left open.
      opset: version of ONNX's operators, at least 21.

    Returns:
      An `onnx.ModelProto`, which `onnx.checker` accepts. ``onnx.save(model, path)`` writes it.

    Raises:
      UserError: a primitive of the program has no rule, or needs a size that is left open; onnx is not installed; the
        options contradict each other.
    """
    import_onnx()
    if opset < OLDEST_OPSET:
        raise UserError(f"opset must be at least {OLDEST_OPSET}, got {opset}")
    activations = activations or ("static" if calibration is not None else "dynamic")
    if (activations == "static") != (calibration is not None):
        raise UserError(
            'activations="static" and calibration= go together: make one with ja.calibrate(f, ...)'
        )
    builder = Builder()
    given, tree = jax.tree.flatten(tuple(inputs))
    shapes_in = _input_shapes(given, symbolic_batch)
    names_in = _names(input_names, len(given), "input")
    leaves, weights_tree = jax.tree_util.tree_flatten_with_path(weights, is_leaf=is_compressed)
    arrays = [i for i, (_, x) in enumerate(leaves) if hasattr(x, "dtype")]
    out_tree: list[Any] = []

    def flat(*values: Any) -> list[Any]:
        now = [x for _, x in leaves]
        for i, value in zip(arrays, values, strict=False):
            now[i] = value
        rest = jax.tree.unflatten(tree, values[len(arrays) :])
        out, found = jax.tree.flatten(f(jax.tree.unflatten(weights_tree, now), *rest))
        out_tree.append(found)
        return out

    closed = _trace(flat, [*(as_shape(leaves[i][1]) for i in arrays), *shapes_in])
    tensors = [builder.input(name, x.shape, x.dtype) for name, x in zip(names_in, shapes_in, strict=True)]
    integers = Integers(builder, activations, calibration)
    rules = {
        **elementwise.make_rules(builder), **shapes.make_rules(builder), **reductions.make_rules(builder),
        **indexing.make_rules(builder), **products.make_rules(builder, integers), **spectra.make_rules(builder),
    }  # fmt: skip
    exporter = Exporter(Transformation("onnx", rules, arrays=True, primal_only=True), builder)
    values = [*(leaves[i][1] for i in arrays), *tensors]
    paths = [*(parameter_path(leaves[i][0]) for i in arrays), *[None] * len(tensors)]
    outs, _, _ = exporter.evaluate(*split_consts(closed), values, paths, Place())
    for name, x in zip(_names(output_names, len(outs), "output"), outs, strict=True):
        builder.output(x.materialize() if is_compressed(x) else x, name)
    drop_unread(builder.root)
    simplify(builder)
    return write_model(builder.root, builder.constants, opset, getattr(f, "__name__", "f"))


def _input_shapes(given: Sequence[Any], symbolic: bool) -> list[jax.ShapeDtypeStruct]:
    if not symbolic:
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given]
    (batch,) = export.symbolic_shape("batch")
    return [jax.ShapeDtypeStruct((batch, *x.shape[1:]) if x.shape else (), x.dtype) for x in given]


def _names(names: Sequence[str] | None, count: int, base: str) -> list[str]:
    if names is None:
        return [base] if count == 1 else [f"{base}_{i}" for i in range(count)]
    if len(names) != count or len({*names}) != count:
        raise UserError(f"{base}_names must be {count} different names, got {', '.join(names) or 'none'}")
    return list(names)


def _trace(f: Callable[..., Any], shapes: Sequence[Any]) -> Any:
    """The program of `f`.

    Raises:
      UserError: it decides by a size that is left open.
    """
    try:
        with kernels.left_out():
            return jax.make_jaxpr(f)(*shapes)
    except jax.errors.JAXTypeError:
        raise
    except Exception as error:
        if "InconclusiveDimensionOperation" in type(error).__name__ or "symbolic" in str(error):
            raise UserError(
                "the function decides by the size of its batch, which is left open: export it for one size with "
                "symbolic_batch=False"
            ) from error
        raise
