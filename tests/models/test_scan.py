import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxaccel import models
from jaxaccel.models.blocks import ConvNorm, InvertedResidual
from jaxaccel.models.counts import multiply_adds, parameters
from jaxaccel.models.efficientnet import Stage
from jaxaccel.models.scan import Scan, sequence, stack, unstack
from jaxaccel.modules import as_model

# A run of equal blocks in each, with BatchNorm, stochastic depth and dropout between them.
SMALL = {
    "resnet": (
        functools.partial(models.ResNet, (1, 3), bottleneck=False, width=4, squeeze=1 / 4, drop_path=0.5),
        (16, 16, 3),
    ),
    "mixer": (
        functools.partial(models.Mixer, width=8, depth=3, patch_size=4, image_size=8, drop_path=0.5),
        (8, 8, 3),
    ),
    "vit": (
        functools.partial(
            models.VisionTransformer, width=12, depth=3, heads=3, patch_size=4, image_size=8, dropout=0.5
        ),
        (8, 8, 3),
    ),
}
FUSED = functools.partial(
    models.EfficientNet, (Stage(2, 3, 2, 6, 3, True), Stage(2, 3, 1, 6, 3)), stem=4, last=8, drop_path=0.5
)


def made(name, scan):
    factory, _ = SMALL[name]
    return factory(scan=scan, classes=5, channels=3, rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))


def pure(model, kind):
    return nnx.to_pure_dict(nnx.state(model, kind))


def assert_close(found, expected, tolerance=1e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max())),
        found, expected,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_scanned_equals_unrolled(name):
    """Outputs, gradients, statistics and the draws of dropout, in training and in inference."""
    _, shape = SMALL[name]
    plain, scanned = made(name, False), made(name, True)
    params = pure(plain, nnx.Param)
    # As the initial values, which are equal; but heads and last scales start at 0.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.2 * rng.standard_normal(p.shape).astype("float32"), params)
    like = pure(scanned, nnx.Param)
    assert "stacked" in str(jax.tree.structure(like))
    x = jnp.asarray(rng.standard_normal((4, *shape)), jnp.float32)

    def run(model, params):
        graph, shapes, rest = nnx.split(model, nnx.Param, ...)
        nnx.replace_by_pure_dict(shapes, params)

        def loss(params):
            module = nnx.merge(graph, params, rest, copy=True)
            y = module(x)
            return (y**2).mean(), (y, pure(module, nnx.BatchStat), pure(module, nnx.RngCount))

        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def both(params):
            (_, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            module = nnx.merge(graph, params, rest, copy=True)
            module.eval()
            return module(x), nnx.to_pure_dict(gradients), *aux

        return both(shapes)

    evaluated, gradients, trained, statistics, counts = run(plain, params)
    found = run(scanned, stack(params, like))
    assert_close(found[0], evaluated)
    assert_close(unstack(found[1]), gradients, 1e-3)
    assert_close(found[2], trained)
    assert_close(unstack(found[3]), statistics)
    np.testing.assert_array_equal(jax.tree.leaves(unstack(found[4])), jax.tree.leaves(counts))


def test_scanned_starts_as_unrolled_and_back():
    plain, scanned = (pure(made("mixer", scan), nnx.Param) for scan in (False, True))
    jax.tree.map(np.testing.assert_array_equal, unstack(scanned), plain)
    jax.tree.map(np.testing.assert_array_equal, stack(plain, jax.eval_shape(lambda: scanned)), scanned)
    assert jax.tree.structure(unstack(plain)) == jax.tree.structure(plain)


def test_runs_of_equal_blocks():
    model = nnx.eval_shape(lambda: FUSED(scan=True, rngs=nnx.Rngs(0)))
    # One with a stride, two that are fused, three that are not.
    assert [len(block.rates) if isinstance(block, Scan) else 1 for block in model.blocks] == [1, 2, 3]
    np.testing.assert_allclose(model.blocks[1].rates, [[0.1], [0.2]])


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_scan_changes_the_program_alone(name):
    plain, scanned = (
        nnx.eval_shape(lambda scan=scan: getattr(models, name)(scan=scan, rngs=nnx.Rngs(0)))
        for scan in (False, True)
    )
    assert parameters(scanned) == parameters(plain)
    assert multiply_adds(scanned, (64, 64, 3)) == multiply_adds(plain, (64, 64, 3))


def test_a_program_does_not_grow_with_the_depth():
    def equations(depth, scan):
        model = nnx.eval_shape(lambda: models.ResNetCifar(depth, scan=scan, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        return str(jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x))(state, x)).count(
            "conv_general_dilated["
        )

    assert equations(20, True) == equations(56, True) < equations(20, False) < equations(56, False)


def test_streams_of_scanned_blocks_are_drawn_anew():
    """Through `as_model`, whose steps each start the random streams at their own key."""
    factory, shape = SMALL["vit"]
    x = jnp.ones((64, *shape))
    model = as_model(functools.partial(factory, scan=True), {"classes": 5}, (x,))
    params, state = model.init(jax.random.key(0, impl="rbg"))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(key):
        return [model.apply(params, state, x, key=key, train=train)[0] for train in (True, False)]

    (first, evaluated), (again, _), (other, _) = (run(jax.random.key(i, impl="rbg")) for i in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.ptp(first, axis=0).max() > 0.1 > 1e-4 > np.ptp(evaluated, axis=0).max(), (
        "each example has its own"
    )


def test_only_equal_blocks_are_scanned():
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    blocks = [ConvNorm(3, 3, 3, rngs=rngs), ConvNorm(3, 3, 1, rngs=rngs), ConvNorm(3, 3, 1, rngs=rngs)]
    assert [type(block) for block in sequence(blocks, True)] == [ConvNorm, Scan]
    assert [type(block) for block in sequence(blocks, False)] == [ConvNorm] * 3
    with pytest.raises(ValueError, match="takes blocks that differ only in their arrays, not these 3"):
        Scan(blocks)
    other = InvertedResidual(3, 3, wide=6, rngs=rngs)
    assert len(sequence([blocks[1], other, blocks[2]], True)) == 3
