"""The network of the package silero-vad against what ONNX Runtime computes with the package's graph.

`fixtures/silero_vad.json` has the probabilities of two sounds (`spoken.draw_speech`): under ``onnx`` with the weights
of the package's ONNX file, under ``safetensors`` with those of its safetensors file put into the same graph. The two
files are of two trainings.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from flax import nnx
from onnx_weights import read_initializers
from safetensors.numpy import save_file
from small_sounds import fast_jit, split
from spoken import draw_speech

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.packages import find_package_file
from jaxaccel.models.audio.silero_vad import CHUNK, Spectrum
from jaxaccel.models.layers.counts import count_parameters

EXPECTED = {
    name: np.array(rows) for name, rows in json.loads((FIXTURES / "silero_vad.json").read_text()).items()
}
CHUNKS = 40
AUDIO = jnp.asarray(np.stack([draw_speech(pitch, CHUNKS * CHUNK) for pitch in (110, 210)]))


def find(file=""):
    try:
        return find_package_file("silero_vad", file)
    except ja.UserError as error:
        pytest.skip(str(error))


def make():
    return models.silero_vad(rngs=nnx.Rngs(0))


@functools.cache
def published():
    """The parameters of the package's safetensors, and the network as a function of them."""
    find()
    model = make()
    loaded = models.load_pretrained(model, "silero_vad")
    assert not loaded.unused and not loaded.fresh
    return split(model)


def test_the_spectrum_is_that_of_numpy():
    x = np.random.default_rng(0).standard_normal((1, 640)).astype(np.float32)
    window = np.hanning(257)[:256]
    frames = np.stack([np.abs(np.fft.rfft(window * x[0, t : t + 256])) for t in range(0, 385, 128)])
    np.testing.assert_allclose(Spectrum()(jnp.asarray(x))[0], frames, rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda x: Spectrum()(x).sum())(jnp.zeros((1, 640)))
    np.testing.assert_array_equal(gradient, 0)  # of silence too


def test_parameters():
    model = nnx.eval_shape(make)
    convolutions = 3 * (129 * 128 + 128 * 64 + 64 * 64 + 64 * 128) + 128 + 64 + 64 + 128
    assert count_parameters(model) == convolutions + 4 * 128 * 257 + 129 == 243_073
    assert "243,073" in models.silero_vad.__doc__
    with pytest.raises(ValueError, match="SileroVad: 700 samples are no multiple of 512"):
        jax.eval_shape(lambda x: make()(x), jax.ShapeDtypeStruct((1, 700), jnp.float32))


def test_probabilities_are_those_of_onnx_runtime():
    params, apply = published()
    found = fast_jit(apply)(params, AUDIO)
    assert found.shape == (2, CHUNKS) and EXPECTED["safetensors"].max() > 0.99 > 0.01 > found.min()
    np.testing.assert_allclose(found, EXPECTED["safetensors"], atol=1e-4)


def test_weights_of_the_onnx_file(tmp_path):
    """The same network with the weights of the package's ONNX file gives what that file gives."""
    weights = read_initializers(find("silero_vad_16k_op15.onnx"))
    named = {name: x for name, x in weights.items() if name.endswith(("weight", "bias", "_ih", "_hh"))}
    named["model.spectrum.weight"] = weights["model.stft.forward_basis_buffer"]
    save_file(named, tmp_path / "onnx.safetensors")
    model = make()
    loaded = models.load_pretrained(model, tmp_path / "onnx.safetensors")
    assert not loaded.unused
    params, apply = split(model)
    np.testing.assert_allclose(fast_jit(apply)(params, AUDIO), EXPECTED["onnx"], atol=1e-4)


def test_chunks_equal_the_whole():
    params, apply = published()
    start, step = (functools.partial(apply, params, method=name) for name in ("start", "step"))
    carry, found = start(2), []
    for piece in jnp.split(AUDIO, [CHUNK, 8 * CHUNK, 24 * CHUNK], axis=1):
        probabilities, carry = step(piece, carry)
        found.append(probabilities)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), apply(params, AUDIO), atol=1e-5)


def find_sites(f, *inputs):
    return {row["path"]: row for row in ja.explain(f, *inputs).rows if row["path"]}


def test_int8_inside_the_scan():
    params, apply = published()
    plain, quantized = np.asarray(apply(params, AUDIO)), ja.quantize(params)
    sites = find_sites(ja.int8(apply), quantized, AUDIO)
    assert sites["lstm/recurrent/kernel"]["shapes"] == [[2, 128], [128, 512], [2, 512]]
    assert sites["lstm/recurrent/kernel"]["after"] == "int8" and len(sites) == 7
    found = np.asarray(fast_jit(ja.int8(apply))(quantized, AUDIO))
    assert 1e-3 < np.abs(found - plain).mean() < 0.08


def test_low_rank_inside_the_scan():
    params, apply = published()
    thin = ja.low_rank(params, rank=90, where="lstm/*/kernel")
    whole = {**params, "lstm": jax.tree.map(np.asarray, params["lstm"])}
    for name in ("input", "recurrent"):
        factors = thin["lstm"][name]["kernel"]
        assert factors.rank == 90
        whole["lstm"][name]["kernel"] = jnp.asarray(np.asarray(factors.left) @ np.asarray(factors.right))
    found = np.asarray(fast_jit(ja.transforms.compressed(apply))(thin, AUDIO))
    np.testing.assert_allclose(found, apply(whole, AUDIO), atol=1e-3)
    assert 1e-3 < np.abs(found - apply(params, AUDIO)).mean() < 0.08
    sites = find_sites(ja.int8(apply), ja.quantize(thin), AUDIO)
    assert sites["lstm/recurrent/kernel/left"]["shapes"] == [[2, 128], [128, 90], [2, 90]]
    assert sites["lstm/recurrent/kernel/right"]["after"] == "int8"


def test_pruned_inside_the_scan():
    params, apply = published()
    plain = np.asarray(apply(params, AUDIO))
    pruned = ja.params.masked(params, ja.prune(params, 0.3, where="lstm/recurrent/kernel"))
    assert np.mean(pruned["lstm"]["recurrent"]["kernel"] == 0) == pytest.approx(0.3, abs=1e-3)
    assert 1e-3 < np.abs(apply(pruned, AUDIO) - plain).mean() < 0.08
    half = ja.params.masked(params, ja.prune(params, pattern="2:4", where="lstm/recurrent/kernel"))
    groups = np.count_nonzero(np.asarray(half["lstm"]["recurrent"]["kernel"]).reshape(32, 4, 512), axis=1)
    np.testing.assert_array_equal(groups, 2)
    assert np.isfinite(fast_jit(ja.int8(apply))(ja.quantize(half), AUDIO)).all()
