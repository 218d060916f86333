"""Programs that are compiled ahead of time, for devices that need not be attached: networks in all precisions.

What a program is made of are functions and shapes alone. Where a transformation asks for values, random ones do.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxaccel as ja
from benchmarks.networks import Network, make_function
from jaxaccel import augment
from jaxaccel.core.compile_ahead import compile_lowered
from jaxaccel.core.platform import platform_of
from jaxaccel.distributed import MeshShape, batch_sharding, placed, state_sharding
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.loss import Precision
from jaxaccel.training.step import Training
from jaxaccel.transforms.calibrate import Calibration

PyTree = Any
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and the shapes of its arguments; the last one is the batch."""

    f: Callable[..., Any]
    args: tuple[PyTree, ...]
    donate: tuple[int, ...] = ()


@functools.cache
def find_function(network: Network) -> tuple[Callable[..., Any], PyTree]:
    """Makes (f, variables) of a network, once."""
    return make_function(network)


def infer(
    network: Network, batch_size: int, transform: Callable[..., tuple[Callable[..., Any], PyTree]]
) -> Program:
    """Makes the program of an inference; `transform` makes (function, parameters) of those of the network."""
    f, variables = find_function(network)
    g, params = transform(f, variables, network)
    return Program(g, (shapes(params), jax.ShapeDtypeStruct((batch_size, *network.shape), jnp.float32)))


def train(network: Network, batch_size: int, precision: Precision, mesh: Mesh) -> Program:
    """Makes the program of a whole training step: the trainer's own of images, and a plain one of sequences."""
    if len(network.shape) != 3:
        return _train_sequences(network, batch_size, precision)
    task = ImageClassification()
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *network.shape), np.uint8),
        **{name: jax.ShapeDtypeStruct((batch_size,), np.int32) for name in ("label", "index", "epoch")},
        "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
    }
    facts = {"classes": CLASSES, "channels": network.shape[2], "image_size": network.shape[0]}
    model = as_model(network.make, facts, jax.eval_shape(task.inputs, batch))
    optimizer, schedule = Optimizer("sgd", 0.1, {"momentum": 0.9}, 1e-4), Schedule("constant").build(0.1, 1)
    training = Training(
        model, task, optimizer.build(schedule), schedule, augment.chain(), precision=precision
    )
    state = jax.eval_shape(training.init)
    sharded = placed(state, state_sharding(state, mesh))
    return Program(training.lowered(training.step), (sharded, batch), donate=(0,))


def _train_sequences(network: Network, batch_size: int, precision: Precision) -> Program:
    f, variables = find_function(network)
    narrow = {
        "float32": lambda f: f,
        "bfloat16": ja.bfloat16,
        "float16": ja.float16,
        "int8-qat": ja.fake_int8,
    }
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(state: PyTree, x: jax.Array) -> PyTree:
        params, memory = state

        def loss(params: PyTree) -> jax.Array:
            logits = narrow[precision](f)({**variables, "params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.zeros(len(x), jnp.int32)
            ).mean()

        updates, memory = optimizer.update(jax.grad(loss)(params), memory)
        return optax.apply_updates(params, updates), memory

    state = shapes((variables["params"], jax.eval_shape(optimizer.init, variables["params"])))
    x = jax.ShapeDtypeStruct((batch_size, *network.shape), jnp.float32)
    return Program(step, (state, x), donate=(0,))


def compile_program(program: Program, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a program for the devices of a mesh, its batch split over them."""
    whole = NamedSharding(mesh, PartitionSpec())
    *rest, batch = program.args
    args = [jax.tree.map(lambda x: _place(x, whole), arg) for arg in rest]
    args.append(jax.tree.map(lambda x: _place(x, batch_sharding(mesh)), batch))
    with jax.set_mesh(mesh):
        lowered = jax.jit(program.f, donate_argnums=program.donate).lower(*args)
    return compile_lowered(lowered, platform_of(mesh))


def _place(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """A shape with its own sharding, or with this one."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or sharding)


def shapes(tree: PyTree) -> PyTree:
    """The shapes and dtypes of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _static(f: Callable[..., Any], variables: PyTree, network: Network) -> tuple[Callable[..., Any], PyTree]:
    """BatchNorm folded and ranges known: their values do not matter here, so all are 1."""
    one = network.examples(1)
    g, folded = ja.fold(f, variables, one)
    q = _quantize(folded)
    sites = {row["site"] for row in ja.explain(ja.int8(g), q, one).rows}
    return ja.int8(g, calibration=Calibration(dict.fromkeys(sites, np.float32(1)))), q


def _quantize(params: PyTree, bits: int = 8) -> PyTree:
    """The shapes of quantized parameters."""
    return jax.eval_shape(lambda params: ja.quantize(params, bits=bits), params)


def _quantized(activations: str = "dynamic", bits: int = 8, **options: Any) -> Callable[..., Any]:
    def transform(f: Callable[..., Any], variables: PyTree, network: Network) -> Any:
        return ja.int8(f, activations=activations, **options), _quantize(variables, bits)  # type: ignore[arg-type]

    return transform


def _train_int8(f: Callable[..., Any], variables: PyTree, network: Network) -> Any:
    def gradient(variables: PyTree, x: jax.Array) -> PyTree:
        g = ja.int8(f, train=True, key=jax.random.key(0))
        return jax.grad(lambda params: (g({**variables, "params": params}, x) ** 2).sum())(
            variables["params"]
        )

    return gradient, variables


def _factored(f: Callable[..., Any], variables: PyTree, network: Network) -> Any:
    params = ja.low_rank(variables["params"], energy=0.9)
    return ja.transforms.compressed(f), {**variables, "params": params}


def _shared(f: Callable[..., Any], variables: PyTree, network: Network) -> Any:
    params = ja.params.share(variables["params"], bits=4)
    return ja.transforms.compressed(f), {**variables, "params": params}


VARIANTS: Mapping[str, Callable[..., tuple[Callable[..., Any], PyTree]]] = {
    "float32": lambda f, variables, network: (f, variables),
    "retargeted": lambda f, variables, network: (ja.retarget(f), variables),
    "bfloat16": lambda f, variables, network: (ja.bfloat16(f), variables),
    "float16": lambda f, variables, network: (ja.float16(f), variables),
    "float8": lambda f, variables, network: (ja.float8(f), variables),
    "int8 dynamic": _quantized(),
    "int8 dynamic and bfloat16": lambda f, v, n: (ja.bfloat16(ja.int8(f)), _quantize(v)),
    "int8 static, folded": _static,
    "int8 with attention": _quantized(attention=True),
    "int8 weights only": _quantized("none"),
    "int4 weights only": _quantized("none", bits=4),
    "int8 training": _train_int8,
    "low rank": _factored,
    "shared": _shared,
}
"""What is made of an inference; ``int8 training`` is a gradient."""
TRAINED: tuple[Precision, ...] = ("float32", "bfloat16", "float16", "int8-qat")
"""The precisions of a training step."""
MESHES: Mapping[str, MeshShape] = {
    "one": MeshShape(data=1),
    "8 data": MeshShape(data=8),
    "8 fsdp": MeshShape(data=1, fsdp=8),
    "2 data, 4 model": MeshShape(data=2, model=4),
}
"""Meshes of one device and of eight."""


infer_in = {name: partial(infer, transform=transform) for name, transform in VARIANTS.items()}
"""By variant, what makes the program of (network, batch size)."""
