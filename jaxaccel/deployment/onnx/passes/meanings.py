"""Operators that mean more: mean, softmax, LayerNorm, GELU."""

import numpy as np

from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.graph import Node
from jaxaccel.deployment.onnx.passes.match import Matcher, Number, Op

_CUBE = Op("Mul", (Op("Mul", ("x", "x")), "x"))
_TANH = Op("Tanh", (Op("Mul", (Number(0.7978846), Op("Add", ("x", Op("Mul", (Number(0.044715), _CUBE)))))),))
GELUS = {
    "tanh": Op("Mul", ("x", Op("Mul", (Number(0.5), Op("Add", (Number(1.0), _TANH)))))),
    "none": Op(
        "Mul",
        (
            Op("Mul", (Number(0.5), "x")),
            Op("Sub", (Number(1.0), Op("Erf", (Op("Mul", (Op("Neg", ("x",)), Number(0.7071068))),)))),
        ),
    ),
}
"""As `jax.nn.gelu` computes it, by the name of ONNX's approximation."""

_EXP = Op("Exp", (Op("Sub", ("x", Op("ReduceMax", ("x",), "max"))),), "exp")
SOFTMAX = Op("Div", (_EXP, Op("ReduceSum", ("exp",), "sum")))

_MEAN = Op("ReduceMean", ("x",), "mean")
_CENTERED = Op("Sub", ("x", _MEAN), "centered")
VARIANCES = (
    Op(
        "Relu",
        (Op("Sub", (Op("ReduceMean", (Op("Mul", ("x", "x")),), "squares"), Op("Mul", (_MEAN, _MEAN)))),),
    ),
    Op("ReduceMean", (Op("Mul", (_CENTERED, _CENTERED)),), "squares"),
)
"""Of LayerNorm: in one pass and in two."""
NORMS = tuple(
    Op(
        "Add",
        (
            Op(
                "Mul",
                (
                    _CENTERED,
                    Op(
                        "Mul",
                        (
                            Op("Reciprocal", (Op("Sqrt", (Op("Add", (variance, Number(name="epsilon"))),)),)),
                            "scale",
                        ),
                    ),
                ),
            ),
            "bias",
        ),
    )
    for variance in VARIANCES
)


def write_mean(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """A sum divided by how many it is of, or multiplied by the reciprocal: ReduceMean."""
    found = matcher.match(node.outputs[0], Op("Div", (Op("ReduceSum", ("x",), "sum"), Number(name="count"))))
    if (
        found is None
        or node.op != "Div"
        or builder.summed.get(found["sum"]) != matcher.number(found["count"])
    ):
        return None
    # What drops the axes of the sum stands between.
    source, views = node.inputs[0], []
    while source != found["sum"]:
        view = matcher.producers[source]
        views.append(view)
        source = view.inputs[0]
    total = matcher.producers[source]
    name = builder.node("ReduceMean", *total.inputs, keepdims=1)
    builder.ranks[name] = builder.ranks[source]
    for view in reversed(views):
        name = builder.node(view.op, name, *view.inputs[1:], **view.attributes)
    return name


def write_softmax(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """Softmax along one axis."""
    found = matcher.match(node.outputs[0], SOFTMAX) if node.op == "Div" else None
    if found is None:
        return None
    axes = [builder.constants[matcher.producers[found[name]].inputs[1]] for name in ("max", "sum")]
    if axes[0].size != 1 or axes[0].item() != axes[1].item():
        return None
    subtraction = matcher.producers[matcher.producers[matcher.strip(node.inputs[0])].inputs[0]]
    return builder.node("Softmax", subtraction.inputs[0], axis=int(axes[0].item()))


def write_gelu(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """GELU, exact or by tanh."""
    if node.op != "Mul":
        return None
    for approximation, pattern in GELUS.items():
        found = matcher.match(node.outputs[0], pattern)
        if found is not None:
            return builder.node("Gelu", found["x"], approximate=approximation)
    return None


def write_layer_norm(builder: Builder, node: Node, matcher: Matcher) -> str | None:
    """LayerNorm over one axis, which ONNX has for the last ones."""
    found = None
    if node.op == "Add":
        found = next(
            (f for pattern in NORMS if (f := matcher.match(node.outputs[0], pattern)) is not None), None
        )
    scale, bias = (builder.constants.get(found[name]) if found else None for name in ("scale", "bias"))
    if found is None or scale is None or bias is None or scale.ndim != bias.ndim or scale.shape != bias.shape:
        return None
    axes = [builder.constants[matcher.producers[found[name]].inputs[1]] for name in ("mean", "squares")]
    varies = [axis for axis, n in enumerate(scale.shape) if n != 1]
    if len(varies) != 1 or any(a.size != 1 or a.item() != axes[0].item() for a in axes):
        return None
    axis, behind = axes[0].item(), scale.ndim - 1 - varies[0]
    rank = (
        axis + 1 + behind
    )  # if the scale varies along the axis that is normalized, as far from the last one
    if builder.ranks.get(found["mean"]) != rank:
        return None
    order = [a for a in range(rank) if a != axis] + [axis]
    x, last = found["x"], behind == 0
    name = builder.node(
        "LayerNormalization",
        x if last else builder.node("Transpose", x, perm=order),
        builder.constant(np.ascontiguousarray(scale.reshape(-1))),
        builder.constant(np.ascontiguousarray(bias.reshape(-1))),
        axis=-1,
        epsilon=matcher.number(found["epsilon"]),
    )
    return name if last else builder.node("Transpose", name, perm=[order.index(a) for a in range(rank)])
