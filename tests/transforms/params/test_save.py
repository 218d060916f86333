"""Packed files: bit for bit what went in, small, and clear about damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.save import transfer_seconds


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def everything():
    w = {"kernel": random(64, 48)}
    pruned = ja.params.masked(w, ja.prune(w, 0.9))
    return {
        "dense": w["kernel"],
        "pruned": pruned["kernel"],
        "shared": ja.params.share(pruned, 4)["kernel"],
        "int8": ja.quantize(w)["kernel"],
        "int4": ja.quantize({"kernel": random(64, 47)}, bits=4, block=32)["kernel"],
        "zero point": ja.quantize(w, symmetric=False)["kernel"],
        "low rank": ja.low_rank({"kernel": random(3, 3, 8, 16)}, rank=4, form="spatial")["kernel"],
        "low rank int8": ja.quantize(ja.low_rank(w, rank=8))["kernel"],
        "list": [jnp.arange(5), {0: jnp.bfloat16(1.5), 1: jnp.asarray([True, False])}],
        "empty": jnp.zeros((0, 3)),
        "odd": jnp.asarray([-0.0, jnp.nan, jnp.inf, 0.0, 0.0]),
        "64 bits": [np.asarray([2**40, -1]), np.asarray(np.pi), np.asarray([2**63], np.uint64)],
        "gaps": [{"w": jnp.ones(2)}, {}, [], None, {"w": jnp.zeros(2)}, {}],
    }


def test_bytes_in_another_order(tmp_path):
    ja.params.save([np.arange(5, dtype=">f4")], tmp_path / "a")
    same(ja.params.load(tmp_path / "a"), [np.arange(5, dtype=np.float32)])


@pytest.mark.parametrize("params", [{}, {"params": {"w": np.float32(1)}, "model_state": {}}])
def test_what_is_empty_stays(tmp_path, params):
    ja.params.save(params, tmp_path / "a")
    same(ja.params.load(tmp_path / "a"), params)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def test_what_went_in_comes_out(tmp_path):
    params = everything()
    size = ja.params.save(params, tmp_path / "a.safetensors")
    assert size == (tmp_path / "a.safetensors").stat().st_size
    same(ja.params.load(tmp_path / "a.safetensors"), params)


def test_containers_come_from_like(tmp_path):
    params = (jnp.arange(3), {"b": [jnp.ones(2)]})
    ja.params.save(params, tmp_path / "a")
    same(ja.params.load(tmp_path / "a", like=params), params)
    with pytest.raises(UserError, match="packed from other parameters"):
        ja.params.load(tmp_path / "a", like=(jnp.arange(3), {"c": jnp.ones(2)}))


def test_sizes_come_near_the_entropy(tmp_path):
    w = {"kernel": random(512, 512)}
    pruned = ja.params.masked(w, ja.prune(w, 0.9))
    shared = ja.params.share(pruned, 4)
    share, kept = 0.1, w["kernel"].size * 0.1
    mask = -w["kernel"].size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    counts = np.bincount(np.asarray(shared["kernel"].indices).ravel())[1:] / kept
    values = -kept * (counts * np.log2(np.maximum(counts, 1e-12))).sum() / 8
    assert ja.params.save(pruned, tmp_path / "a") < 1.05 * (mask + 4 * kept) + 2000
    assert ja.params.save(shared, tmp_path / "b") < 1.05 * (mask + values) + 2000


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "a"
    ja.params.save(everything(), path)
    content = path.read_bytes()
    path.write_bytes(content[:-500])
    with pytest.raises(UserError, match="is no whole file of"):
        ja.params.load(path)
    at = len(content) - 2000
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(UserError, match="is damaged"):
        ja.params.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="is no whole file of"):
        ja.params.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        ja.params.load(tmp_path / "none")


def test_versions_of_the_format(tmp_path):
    ja.params.save([jnp.ones(2)], tmp_path / "a")
    content = (tmp_path / "a").read_bytes()

    def of_version(number):
        (tmp_path / "b").write_bytes(content.replace(rb"\"version\": 2", rb"\"version\": %d" % number))
        return ja.params.load(tmp_path / "b")

    same(of_version(1), [jnp.ones(2)])
    with pytest.raises(UserError, match="is of version 3 of the format, this jaxaccel reads up to 2"):
        of_version(3)


def test_what_is_no_array_is_refused(tmp_path):
    with pytest.raises(UserError, match="arrays of numbers"):
        ja.params.save({"a": "text"}, tmp_path / "a")


def test_what_is_nearly_all_zeros_can_be_read_again(tmp_path):
    """Packed tightly it would look like a bomb, which no reader unpacks."""
    zeros = np.zeros(70_000_000, np.uint8)
    assert ja.params.save({"w": zeros}, tmp_path / "a") > zeros.size // 8
    found = ja.params.load(tmp_path / "a")["w"]
    assert found.shape == zeros.shape and not found.any()


def test_seconds_of_a_transfer():
    assert transfer_seconds(1_250_000, 10e6) == 1.0
