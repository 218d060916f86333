"""Runs quantized models on eight devices in several meshes and prints what the tests of them want to know."""

import json
import sys
import tempfile
from pathlib import Path

from jaxaccel.core import runtime

runtime.setup()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jaxaccel as ja  # noqa: E402
from jaxaccel import models  # noqa: E402
from jaxaccel.distributed import MeshShape, batch_sharding, make_mesh, state_sharding  # noqa: E402
from jaxaccel.models.adapter import as_model  # noqa: E402

MESHES = {"8,1,1": (8, 1, 1), "1,8,1": (1, 8, 1), "2,2,2": (2, 2, 2), "1,1,8": (1, 1, 8)}


def network():
    facts = {"classes": 16, "channels": 3, "image_size": 16}
    make = lambda **kw: models.VisionTransformer(width=64, depth=1, heads=8, patch_size=4, **kw)  # noqa: E731

    def factory(classes: int, channels: int, image_size: int, rngs):
        return make(classes=classes, channels=channels, image_size=image_size, rngs=rngs)

    model = as_model(factory, facts, (jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32),))
    params, state = model.init(jax.random.key(0))
    params["head"] = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(2), x.shape), params["head"]
    )  # not zeros
    return (lambda p, x: model.apply(p, state, x, key=jax.random.key(0), train=False)[0]), params


def shards(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {
        name: [x.shape, x.addressable_shards[0].data.shape]
        for name, (_, x) in zip(names, leaves, strict=True)
    }


def main():
    f, params = network()
    x = jax.random.normal(jax.random.key(1), (16, 16, 16, 3))
    ranges = ja.calibrate(f, params, [x])
    found = {}
    for bits in (8, 4):
        q = ja.quantize(params, bits=bits)
        functions = {
            "dynamic": ja.int8(f),
            "static": ja.int8(f, calibration=ranges),
            "bfloat16": ja.bfloat16(ja.int8(f)),
        }
        alone = {name: np.asarray(jax.jit(g)(q, x)) for name, g in functions.items()}
        for mesh_name, shape in MESHES.items() if bits == 8 else [("2,2,2", MESHES["2,2,2"])]:
            mesh = make_mesh(MeshShape(*shape), jax.devices())
            q_split = jax.device_put(q, state_sharding(q, mesh))
            x_split = jax.device_put(x, batch_sharding(mesh))
            for name, g in functions.items():
                difference = np.abs(np.asarray(jax.jit(g)(q_split, x_split)) - alone[name]).max()
                found[f"{bits}/{mesh_name}/{name}"] = float(difference / np.abs(alone[name]).max())
            found[f"{bits}/{mesh_name}/shards"] = shards(q_split)
    q = ja.quantize(params)
    with tempfile.TemporaryDirectory() as directory, ocp.StandardCheckpointer() as checkpointer:
        first, second = (make_mesh(MeshShape(*MESHES[name]), jax.devices()) for name in ("2,2,2", "1,1,8"))
        checkpointer.save(Path(directory) / "q", jax.device_put(q, state_sharding(q, first)))
        checkpointer.wait_until_finished()
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), q, state_sharding(q, second)
        )
        again = checkpointer.restore(Path(directory) / "q", target)
        same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), q, again)
        found["restored"] = all(jax.tree.leaves(same)) and isinstance(
            jax.tree.leaves(again, is_leaf=lambda x: isinstance(x, ja.arrays.QuantArray))[1],
            ja.arrays.QuantArray,
        )
        found["restored shards"] = shards(again)
    found["shard_map"] = shard_mapped()
    found["compressed in shard_map"] = compressed_and_mapped()
    found["calibrated in shard_map"] = calibrated_and_mapped()
    print(json.dumps(found))


def shard_mapped():
    """int8 inside shard_map, with weights split by output, and shard_map inside int8."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"kernel": jax.random.normal(jax.random.key(0), (32, 64))}
    x, q = jax.random.normal(jax.random.key(1), (16, 32)), ja.quantize(params)

    def f(p, x):
        return x @ p["kernel"]

    want = ja.int8(f)(q, x)
    split = jax.tree.map(lambda _: P(None, "d"), q)
    inside = jax.shard_map(ja.int8(f), mesh=mesh, in_specs=(split, P()), out_specs=P(None, "d"))(q, x)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=({"kernel": P(None, "d")}, P()), out_specs=P(None, "d"))
    outside = jax.jit(ja.int8(mapped, strict=True))(q, x)
    rows = jax.shard_map(f, mesh=mesh, in_specs=({"kernel": P()}, P("d")), out_specs=P("d"))
    by_rows = jax.jit(ja.int8(rows, strict=True))(q, x)
    return [float(jnp.abs(y - want).max()) for y in (inside, outside, by_rows)]


def mapped(mesh, weights, inputs, out, reduce=None):
    """A product with weights and inputs split so over the devices."""

    def local(p, x):
        y = jnp.tanh(x) @ p["kernel"]
        return y if reduce is None else jax.lax.psum(y, reduce)

    return jax.shard_map(local, mesh=mesh, in_specs=({"kernel": weights}, inputs), out_specs=out)


SPLITS = {
    "outputs": (P(None, "a"), P(), P(None, "a"), None),
    "outputs over both": (P(None, ("a", "b")), P(), P(None, ("a", "b")), None),
    "inputs": (P("a"), P(None, "a"), P(), "a"),
    "both": (P("a", "b"), P(None, "a"), P(None, "b"), "a"),
    "rows": (P(), P(("a", "b")), P(("a", "b")), None),
}


def compressed_and_mapped():
    """For every array type and split: the error of the result and of gradients against the dense product."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = {"kernel": jax.random.normal(jax.random.key(0), (32, 64))}
    x = jax.random.normal(jax.random.key(1), (16, 32))
    kinds = {
        "share": ja.params.share(params, 4),
        "low_rank": ja.low_rank(params, rank=8),
        "int8": ja.quantize(params),
        "zero points": ja.quantize(params, symmetric=False),
        "int4": ja.quantize(params, bits=4),
        "int4 blocks": ja.quantize(params, bits=4, block=4),
        "int4 few blocks": ja.quantize(params, bits=4, block=16),
        "int8 low_rank": ja.quantize(ja.low_rank(params, rank=8)),
    }
    found = {}
    for number, (kind, compressed) in enumerate(kinds.items()):
        name = list(SPLITS)[number % len(SPLITS)]  # a diagonal: each split at one kind or two
        f = mapped(mesh, *SPLITS[name])
        errors = [*errors_of(f, compressed, x, "none")]
        if kind != "share" and "low_rank" not in kind:
            errors.append(errors_of(f, compressed, x, "dynamic")[0] / 1e3)
        found[f"{kind}, {name}"] = max(errors)
    return found


def errors_of(f, compressed, x, activations):
    """Of the result and, for weights alone, of the gradient by the inputs, relative to the largest."""
    kernel = ja.params.dequantize(compressed)["kernel"]

    def error(got, want):
        return float(jnp.abs(got - want).max() / jnp.abs(want).max())

    errors = [error(jax.jit(ja.int8(f, activations=activations))(compressed, x), jnp.tanh(x) @ kernel)]
    if activations == "none":
        slope = jax.jit(jax.grad(lambda x: jnp.sin(ja.transforms.compressed(f)(compressed, x)).sum()))(x)
        errors.append(error(slope, jax.grad(lambda x: jnp.sin(jnp.tanh(x) @ kernel).sum())(x)))
    return errors


def calibrated_and_mapped():
    """Ranges found inside shard_map, and without it, by method and split."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = {"kernel": jax.random.normal(jax.random.key(0), (32, 64))}
    x = jnp.linspace(-3, 2, 16 * 32).reshape(16, 32)
    found = {}
    for method in ("absmax", "percentile"):
        want = ja.calibrate(lambda p, x: jnp.tanh(x) @ p["kernel"], params, [x], method=method).ranges[
            "kernel"
        ]
        for name, split in SPLITS.items():
            got = ja.calibrate(mapped(mesh, *split), params, [x], method=method).ranges["kernel"]
            found[f"{method}, {name}"] = [float(got), float(want)]
    return found


if __name__ == "__main__":
    main()
    sys.stdout.flush()
