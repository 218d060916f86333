import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import fast_jit, filled, initialized, shapes_of
from flax import nnx

from jaxaccel import models
from jaxaccel.models.adapter import abstract_variables, as_model
from jaxaccel.models.layers.blocks import ConvNorm, InvertedResidual
from jaxaccel.models.layers.counts import count_multiply_adds, count_parameters
from jaxaccel.models.layers.scan import Scan, sequence, stack, unstack
from jaxaccel.models.vision.efficientnet import Stage

# A run of equal blocks in each, with BatchNorm, stochastic depth and dropout between them.
SMALL = {
    "resnet": (
        functools.partial(models.ResNet, (1, 3), bottleneck=False, width=4, drop_path=0.5),
        (16, 16, 3),
    ),
    "mixer": (
        functools.partial(models.Mixer, width=8, depth=2, patch_size=4, image_size=8, drop_path=0.5),
        (8, 8, 3),
    ),
    "vit": (
        functools.partial(
            models.VisionTransformer, width=12, depth=2, heads=3, patch_size=4, image_size=8, dropout=0.5
        ),
        (8, 8, 3),
    ),
}
FUSED = functools.partial(
    models.EfficientNet, (Stage(2, 3, 2, 6, 3, True), Stage(2, 3, 1, 6, 3)), stem=4, last=8, drop_path=0.5
)


def made(name, scan, rngs):
    return SMALL[name][0](scan=scan, classes=5, channels=3, rngs=rngs)


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
    plain, scanned = (shapes_of(functools.partial(made, name, scan)) for scan in (False, True))
    values = nnx.to_pure_dict(nnx.state(filled(plain)))
    like = nnx.to_pure_dict(nnx.state(scanned))
    assert "stacked" in str(jax.tree.structure(like))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, *shape)), jnp.float32)

    def run(model, values):
        graph, state = nnx.split(model)
        nnx.replace_by_pure_dict(state, values)
        params, rest = nnx.split_state(state, nnx.Param, ...)

        def loss(params):
            module = nnx.merge(graph, params, rest, copy=True)
            y = module(x)
            return (y**2).mean(), (y, pure(module, nnx.BatchStat), pure(module, nnx.RngCount))

        @fast_jit
        def both(params):
            (_, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            module = nnx.merge(graph, params, rest, copy=True)
            module.eval()
            return module(x), nnx.to_pure_dict(gradients), *aux

        return both(params)

    evaluated, gradients, trained, statistics, counts = run(plain, values)
    found = run(scanned, stack(values, like))
    assert_close(found[0], evaluated)
    assert_close(unstack(found[1]), gradients, 1e-3)
    assert_close(found[2], trained)
    assert_close(unstack(found[3]), statistics)
    np.testing.assert_array_equal(jax.tree.leaves(unstack(found[4])), jax.tree.leaves(counts))


def test_scanned_starts_as_unrolled_and_back():
    both = (initialized(functools.partial(made, "mixer", scan)) for scan in (False, True))
    plain, scanned = (pure(model, nnx.Param) for model in both)
    jax.tree.map(np.testing.assert_array_equal, unstack(scanned), plain)
    jax.tree.map(np.testing.assert_array_equal, stack(plain, jax.eval_shape(lambda: scanned)), scanned)
    assert jax.tree.structure(unstack(plain)) == jax.tree.structure(plain)


def test_runs_of_equal_blocks():
    model = shapes_of(lambda rngs: FUSED(scan=True, rngs=rngs))
    # One with a stride, two that are fused, three that are not.
    assert [len(block.rates) if isinstance(block, Scan) else 1 for block in model.blocks] == [1, 2, 3]
    np.testing.assert_allclose(model.blocks[1].rates, [[0.1], [0.2]])


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_scan_changes_the_program_alone(name):
    plain, scanned = (
        shapes_of(lambda rngs, scan=scan: getattr(models, name)(scan=scan, rngs=rngs))
        for scan in (False, True)
    )
    assert count_parameters(scanned) == count_parameters(plain)
    assert count_multiply_adds(scanned, (64, 64, 3)) == count_multiply_adds(plain, (64, 64, 3))


def test_a_program_does_not_grow_with_the_depth():
    def equations(depth, scan):
        model = shapes_of(lambda rngs: models.ResNetCifar(depth, scan=scan, rngs=rngs))
        model.eval()
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
    rng = np.random.default_rng(0)
    params, state = jax.tree.map(
        lambda s: rng.standard_normal(s.shape, np.float32), abstract_variables(model)
    )

    @fast_jit
    def run(key):
        return [model.apply(params, state, x, key=key, train=train)[0] for train in (True, False)]

    (first, evaluated), (again, _), (other, _) = (run(jax.random.key(i, impl="rbg")) for i in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.ptp(first, axis=0).max() > 0.1 > 1e-4 > np.ptp(evaluated, axis=0).max(), (
        "each example has its own"
    )


def test_only_equal_blocks_are_scanned():
    blocks = [
        filled(shapes_of(lambda rngs, size=size: ConvNorm(3, 3, size, rngs=rngs))) for size in (3, 1, 1)
    ]
    assert [type(block) for block in sequence(blocks, True)] == [ConvNorm, Scan]
    assert [type(block) for block in sequence(blocks, False)] == [ConvNorm] * 3
    with pytest.raises(ValueError, match="takes blocks that differ only in their arrays, not these 3"):
        Scan(blocks)
    other = filled(shapes_of(lambda rngs: InvertedResidual(3, 3, wide=6, rngs=rngs)))
    assert len(sequence([blocks[1], other, blocks[2]], True)) == 3


def test_a_loop_gathers_weights_and_reduces_gradients_only_as_often_as_needed(told):
    """Under fsdp; without a word on how the loop's value is split, XLA sums every gradient twice."""
    moved = told(Path(__file__).parent / "scan_program.py")
    for kind, gathers in (("scanned", 2.1), ("unrolled", 1.1)):
        reduced = moved[kind].get("all-reduce", 0) + moved[kind].get("reduce-scatter", 0)
        assert moved[kind]["all-gather"] < gathers and reduced < 1.1, moved


@pytest.mark.slow
def test_a_loop_needs_no_more_memory_than_its_blocks_one_by_one():
    def temporaries(scan):
        model = models.VisionTransformer(
            patch_size=8, width=64, depth=8, heads=4, scan=scan, classes=10, channels=3, image_size=32,
            rngs=nnx.Rngs(0),
        )  # fmt: skip
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        loss = lambda params, x: (nnx.merge(graph, params, rest)(x) ** 2).sum()  # noqa: E731
        step = jax.jit(jax.grad(loss)).lower(params, jnp.zeros((16, 32, 32, 3)))
        return step.compile({"xla_backend_optimization_level": 0}).memory_analysis().temp_size_in_bytes

    assert temporaries(True) < 1.05 * temporaries(False)
