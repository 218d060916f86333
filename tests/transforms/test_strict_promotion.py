"""Every transformation under JAX's strict promotion of dtypes, where no cast happens that is not written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja

SCAN = jax.random.normal(jax.random.key(1), (2, 8, 8)) / 3
PARAMS = {
    "conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 8)) / 6},
    "loop": {"stacked": {"kernel": SCAN}},
    "out": {"kernel": jax.random.normal(jax.random.key(2), (8, 4)) / 3},
}
X = jax.random.normal(jax.random.key(3), (2, 4, 4, 4))
MATRICES = ["conv/kernel", "out/kernel"]


def f(p, x):
    x = jax.lax.conv_general_dilated(
        x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x).mean((1, 2))
    x = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["loop"]["stacked"]["kernel"])[0]
    return x @ p["out"]["kernel"]


def loss(g):
    return lambda p, x: g(p, x).astype(jnp.float32).sum()


def hinted(p, x):
    hints = [
        ja.transforms.Hint("conv/kernel", "conv/kernel", kind) for kind in ("hint", "attention", "relation")
    ]
    d = ja.distill(f, f, hints=hints)
    projections = d.init(jax.random.key(0), p, p, x)
    return jax.grad(lambda p: d(p, p, x, projections=projections)[1].sum())(p)


def followed(p, x):
    running = ja.transforms.RunningRanges()
    state = running.init(ja.fake_int8(f, observe=True)(p, x)[1])
    return running.update(state, ja.fake_int8(f, calibration=state, observe=True)(p, x)[1]).ranges


def quantized(p, **options):
    return ja.quantize(p, **{"where": "**/kernel", **options})


CALLS = {
    "bfloat16": lambda p, x: ja.bfloat16(f, lowering="bfloat16")(p, x),
    "grad of bfloat16": lambda p, x: jax.grad(loss(ja.bfloat16(f, lowering="bfloat16")))(p, x),
    "float16": lambda p, x: jax.grad(loss(ja.float16(f, lowering="float16")))(p, x),
    "float8": lambda p, x: jax.grad(loss(ja.float8(f, emulate=True)))(p, x),
    "int8 dynamic": lambda p, x: ja.int8(f)(quantized(p), x),
    "int8 insisted": lambda p, x: ja.int8(f, lowering="int8")(quantized(p), x),
    "int8 static": lambda p, x: ja.int8(f, calibration=ja.calibrate(f, p, [x], method="mse"))(
        quantized(p), x
    ),
    "int8 of weights": lambda p, x: ja.int8(f, activations="none")(quantized(p), x),
    "int4 of weights": lambda p, x: ja.int8(f, activations="none")(quantized(p, bits=4, block=2), x),
    "int8 with zero points": lambda p, x: ja.int8(f)(quantized(p, symmetric=False, range="mse"), x),
    "int8 in training": lambda p, x: jax.grad(loss(ja.int8(f, train=True, key=jax.random.key(0))))(p, x),
    "fake_int8": lambda p, x: jax.grad(loss(ja.fake_int8(f)))(p, x),
    "running ranges": followed,
    "folded": lambda p, x: ja.int8(ja.fold(f, p, x)[0])(ja.quantize(ja.fold(f, p, x)[1]), x),
    "retarget": lambda p, x: ja.retarget(jax.grad(loss(f)))(p, x),
    "features": lambda p, x: ja.transforms.features(f, ["conv/kernel"])(p, x),
    "distill": hinted,
    "moments": lambda p, x: (
        ja.transforms.input_norms(f, p, [x]),
        ja.transforms.input_covariances(f, p, [x]),
    ),
    "share": lambda p, x: ja.transforms.compressed(f)(ja.params.share(p), x),
    "low_rank": lambda p, x: ja.transforms.compressed(f)(ja.low_rank(p, rank=2, where=MATRICES), x),
    "prune": lambda p, x: ja.params.masked(
        p, ja.prune(p, 0.5, criterion="wanda", norms=ja.transforms.input_norms(f, p, [x]))
    ),
    "random": lambda p, x: ja.prune(p, 0.5, scope="global", criterion="random", key=jax.random.key(0)),
    "explain": lambda p, x: len(str(ja.explain(ja.int8(f), quantized(p), x))),
    "unscale": lambda p, x: ja.transforms.LossScale().unscale(p, ja.transforms.LossScale().init()),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_gives_what_it_gives_elsewhere(name):
    params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS), X.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        found = CALLS[name](params, x)
    want = CALLS[name](params, x)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.float64(a), np.float64(b)), found, want)
    assert all(np.isfinite(np.float64(a)).all() for a in jax.tree.leaves(found))
