"""QuantArray: what it stands for, and how it passes through the primitives that only move numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import jaxaccel as ja
from jaxaccel.core import sites
from jaxaccel.core.arrays import QuantArray, expand, pack, unpack
from jaxaccel.core.interpret import Transformation, transform

W = jax.random.normal(jax.random.key(0), (6, 4, 8))


def quantized(**options):
    return ja.quantize({"kernel": W}, **options)["kernel"]


ARRAYS = {
    "channels": quantized(),
    "tensor": quantized(channels=()),
    "first axis": quantized(channels=0),
    "two axes": quantized(channels=(0, -1)),
    "packed": quantized(bits=4),
    "blocks": quantized(bits=4, block=2),
    "blocks of the last axis": quantized(channels=(0, 1), block=4),
    "zero points": quantized(symmetric=False),
    "odd and packed": ja.quantize({"kernel": W[..., :7]}, bits=4)["kernel"],
}
MOVES = {
    "transpose": lambda w: w.transpose(2, 0, 1),
    "flip": lambda w: w[::-1, :, ::-1],
    "slice": lambda w: w[1:4, :, 2:6],
    "strided slice": lambda w: w[:, 1:3:2],
    "merge": lambda w: w.reshape(24, -1),
    "split": lambda w: w.reshape(6, 2, 2, -1),
    "merge the scaled axis": lambda w: w.reshape(6, -1),
    "to one axis": lambda w: w.reshape(-1),
    "dynamic slice": lambda w: jax.lax.dynamic_slice(w, (1, 0, 2), (2, 4, 4)),
    "row": lambda w: w[2],
    "column": lambda w: w[:, :, 3],
    "rows by index": lambda w: w[jnp.array([1, 3, 1])],
    "rows by table": lambda w: jnp.take(w, jnp.array([[0, 1], [2, 5]]), axis=0),
    "rows out of bounds": lambda w: jnp.take(w, jnp.array([0, 99]), axis=0),
    "broadcast": lambda w: jnp.broadcast_to(w, (3, *w.shape)),
    "new axis": lambda w: w[:, None],
    "cast": lambda w: w.astype(jnp.bfloat16),
    "concatenate": lambda w: jnp.concatenate([w, 2 * w], 1),
    "times a number": lambda w: w * 2.5,
    "jit": lambda w: jax.jit(lambda w: w.T)(w),
}


@pytest.mark.parametrize(("array", "move"), thinned(3, ARRAYS, MOVES))
def test_moves_are_those_of_the_dense_array(array, move):
    q = ARRAYS[array]
    moved = jax.jit(transform(MOVES[move], Transformation("move", {}, arrays=True)))(q)
    want = MOVES[move](q.materialize())
    assert moved.dtype == want.dtype
    np.testing.assert_allclose(np.float32(moved), np.float32(want), rtol=1e-6)


@pytest.mark.parametrize("move", [m for m in MOVES if not m.startswith("rows")])
@pytest.mark.parametrize("array", ["channels", "packed", "blocks"])
def test_moves_keep_it_compressed(array, move):
    def rule(site, x):
        assert isinstance(x, QuantArray), f"{move} made it {type(x).__name__}"
        return x.materialize().sum()

    f = transform(lambda w: jnp.sum(MOVES[move](w)), Transformation("sum", {"reduce_sum": rule}, arrays=True))
    f(ARRAYS[array])


@pytest.mark.parametrize("array", ARRAYS)
def test_it_is_a_pytree_of_the_shape_it_stands_for(array):
    q = ARRAYS[array]
    leaves, treedef = jax.tree.flatten(q)
    again = jax.tree.unflatten(treedef, leaves)
    assert again.shape == q.shape == q.materialize().shape and again.dtype == jnp.float32
    paths = [jax.tree_util.keystr(p, simple=True) for p, _ in jax.tree_util.tree_leaves_with_path(q)]
    assert paths[:2] == ["qvalue", "scale"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), q, again)


@pytest.mark.parametrize("array", ARRAYS)
def test_loops_take_it_apart_row_by_row(array):
    q = ARRAYS[array]

    def f(w, x):
        return jax.lax.scan(lambda x, row: (x + jnp.sum(row), x), x, w)

    with sites.record_runs() as runs:
        got = transform(f, Transformation("scan", {}, arrays=True))(q, 0.0)
    want = f(q.materialize(), 0.0)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)
    assert all("loop" not in r.reason for run in runs for r in run.records)


@pytest.mark.parametrize("array", ["channels", "two axes", "packed", "blocks"])
def test_vmap_takes_it_apart(array):
    q = ARRAYS[array].rows()
    x = jax.random.normal(jax.random.key(1), (6, 3, 4))
    f = ja.int8(lambda w, x: x @ w)
    got = jax.vmap(f)(q, x)
    want = jnp.stack([f(jax.tree.map(lambda leaf, i=i: leaf[i], q), x[i]) for i in range(6)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_four_bits_pack_and_unpack():
    values = jnp.arange(-8, 8, dtype=jnp.int8).reshape(2, 8)
    for cut in (8, 7):
        np.testing.assert_array_equal(unpack(pack(values[:, :cut]), cut), values[:, :cut])
    assert pack(values).nbytes == values.nbytes // 2


def test_its_bytes_are_counted():
    dense = ja.quantize({"kernel": jnp.ones((64, 64))}, bits=4)["kernel"]
    assert dense.nbytes == 64 * 64 // 2 + 64 * 4


def test_blocks_expand_in_order():
    scale = jnp.array([[1.0], [2.0]])
    np.testing.assert_array_equal(expand(scale, (4, 3))[:, 0], [1, 1, 2, 2])
