import jax
import jax.numpy as jnp
import pytest
from families import paths, published, shapes_of, small
from flax import nnx

from jaxaccel import models
from jaxaccel.models.layers.counts import count_multiply_adds, count_parameters
from jaxaccel.models.vision.efficientnet import Stage

# Parameters, multiply-adds in millions, and the side of the images: as in torchvision's table of weights, in timm's
# results (ResNet-D, RS and SE, Mixer, ViT-Ti and S), or, for CIFAR, as papers on pruning have them.
PUBLISHED = {
    "convnext_tiny": (28_589_128, 4456, 224),
    "densenet121": (7_978_856, 2834, 224),
    "efficientnet_b0": (5_288_548, 386, 224),
    "efficientnet_v2_s": (21_458_488, 8366, 384),
    "googlenet": (6_624_904, 1498, 224),
    "inception_v3": (23_834_568, 5713, 299),
    "mixer_b16": (59_880_472, 12_610, 224),
    "mixer_s16": (18_528_264, 3790, 224),
    "mobilenet_v2": (3_504_872, 301, 224),
    "mobilenet_v3_large": (5_483_032, 217, 224),
    "mobilenet_v3_small": (2_542_856, 57, 224),
    "resnet18": (11_689_512, 1814, 224),
    "resnet20": (269_722, 40.6, 32),
    "resnet32": (464_154, 68.9, 32),
    "resnet34": (21_797_672, 3664, 224),
    "resnet44": (658_586, 97.2, 32),
    "resnet50": (25_557_032, 4089, 224),
    "resnet50d": (25_576_264, 4350, 224),
    "resnet56": (853_018, 125.5, 32),
    "resnet110": (1_727_962, 252.9, 32),
    "resnet_rs50": (35_691_912, 2290, 160),
    "resnext50_32x4d": (25_028_904, 4230, 224),
    "se_resnet50": (28_088_024, 4130, 224),
    "vit_b16": (86_567_656, 17_564, 224),
    "vit_s16": (22_050_664, 4610, 224),
    "vit_ti16": (5_717_416, 1260, 224),
}


def test_every_model_is_compared():
    assert {*PUBLISHED, "cifar_fast"} == {
        name
        for name in models.__all__
        if name[0].islower() and ".vision." in getattr(models, name).__module__
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_and_cost_are_the_published_ones(name):
    count, millions, side = PUBLISHED[name]
    model = published(name)
    assert count_parameters(model) == count
    assert count_multiply_adds(model, (side, side, 3)) == pytest.approx(1e6 * millions, rel=0.01)


def test_parameters_are_float32():
    for name in PUBLISHED:
        params = nnx.state(published(name), nnx.Param)
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_multiply_adds_of_a_layer():
    conv = shapes_of(
        lambda rngs: nnx.Conv(4, 6, (3, 5), strides=2, padding=1, feature_group_count=2, rngs=rngs)
    )
    assert count_multiply_adds(conv, (9, 11, 4)) == (5 * 5 * 6) * (3 * 5 * 2)
    linear = shapes_of(lambda rngs: nnx.Linear(3, 7, rngs=rngs))
    assert count_multiply_adds(linear, (5, 2, 3)) == 10 * 21


@pytest.mark.parametrize(
    ("name", "options", "shape", "classes"),
    [
        ("ConvNet", {}, (28, 28, 1), 10),
        ("ConvNet", {"widths": (8, 16), "image_size": 8}, (8, 8, 1), 10),
        ("ConvNet", {"channels": 3, "image_size": (15, 32), "classes": 4}, (15, 32, 3), 4),
        ("ConvNet", {"hidden": 0}, (17, 9, 1), 10),
        ("resnet20", {"classes": 100, "channels": 1}, (32, 32, 1), 100),
        ("resnet18", {}, (224, 224, 3), 1000),
        ("resnet50", {"classes": 7}, (65, 90, 3), 7),
        ("resnet_rs50", {}, (65, 91, 3), 1000),
        ("mobilenet_v2", {"classes": 7}, (65, 90, 3), 7),
        ("mobilenet_v3_small", {"classes": 7, "channels": 1}, (33, 47, 1), 7),
        ("efficientnet_b0", {}, (65, 91, 3), 1000),
        ("densenet121", {}, (29, 45, 3), 1000),
        ("googlenet", {}, (33, 50, 3), 1000),
        ("inception_v3", {}, (75, 92, 3), 1000),
        ("convnext_tiny", {}, (33, 50, 3), 1000),
        ("mixer_s16", {"classes": 7, "channels": 1, "image_size": (32, 48)}, (32, 48, 1), 7),
        ("vit_ti16", {}, (224, 224, 3), 1000),
        ("vit_s16", {"image_size": 32, "patch_size": 4, "classes": 10, "dropout": 0.1}, (32, 32, 3), 10),
    ],
)
def test_output_shape_and_dtype(name, options, shape, classes):
    model = (
        shapes_of(lambda rngs: getattr(models, name)(**options, rngs=rngs)) if options else published(name)
    )
    model.eval()
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, x)
    assert (out.shape, out.dtype) == ((2, classes), jnp.float32)


def test_parameter_paths():
    def of(factory):
        return paths(nnx.state(published(factory.__name__), nnx.Param))

    cifar = of(models.resnet20)
    assert {"stem/conv/kernel", "stages/0/1/conv1/kernel", "stages/2/0/norm2/scale", "head/kernel"} <= set(
        cifar
    )
    assert not any("shortcut" in path for path in cifar)
    resnet = of(models.resnet50)
    assert {"stem/conv/kernel", "stages/0/0/conv3/kernel", "stages/1/0/shortcut/conv/kernel"} <= set(resnet)
    mobile = of(models.mobilenet_v2)
    assert mobile["blocks/16/depthwise/conv/kernel"].shape == (3, 3, 1, 960)
    assert {"blocks/1/expand/conv/kernel", "blocks/0/project/norm/bias", "last/conv/kernel"} <= set(mobile)
    assert not any(path.startswith("blocks/0/expand") for path in mobile)
    convnet = of(models.ConvNet)
    assert {"stages/0/first/conv/kernel", "stages/2/residuals/0/conv/kernel", "hidden/kernel"} <= set(convnet)
    squeezing = of(models.resnet_rs50)
    assert {"stem/layers/2/norm/scale", "pool/conv/kernel", "stages/0/1/squeeze_excite/excite/bias"} <= set(
        squeezing
    )
    assert squeezing["stages/3/0/conv2/kernel"].shape == (3, 3, 512, 512)
    assert of(models.resnext50_32x4d)["stages/3/0/conv2/kernel"].shape == (3, 3, 32, 1024)
    assert {"blocks/0/norm1/scale", "blocks/6/conv/kernel", "norm/bias"} <= set(of(models.densenet121))
    assert {"blocks/0/scale", "blocks/3/layers/1/kernel", "blocks/20/up/kernel"} <= set(
        of(models.convnext_tiny)
    )
    assert "blocks/10/branches/2/layers/2/branches/1/layers/0/conv/kernel" in of(models.inception_v3)
    vit = of(models.vit_s16)
    for name in ("query", "key", "value"):
        assert vit[f"blocks/11/attention/{name}/kernel"].shape == (384, 6, 64)
    assert vit["blocks/0/attention/out/kernel"].shape == (6, 64, 384)
    assert vit["blocks/0/mlp/up/kernel"].shape == (384, 1536)
    assert vit["blocks/0/mlp/down/kernel"].shape == (1536, 384)
    assert vit["positions"].shape == (1, 197, 384)


def test_bottleneck_strides_in_the_3x3_convolution():
    block = published("resnet50").stages[1][0]
    strides = [conv.strides for conv in (block.conv1, block.conv2, block.conv3)]
    assert [s if isinstance(s, int) else max(s) for s in strides] == [1, 2, 1]


def test_mobilenet_channels_are_multiples_of_eight():
    def widths(width):
        model = shapes_of(lambda rngs: models.mobilenet_v2(width=width, rngs=rngs))
        return [block.project.conv.out_features for block in model.blocks], model.head.in_features

    stages = [(16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)]
    assert widths(1.0) == ([n for n, count in stages for _ in range(count)], 1280)
    narrow = [(8, 1), (8, 2), (16, 3), (24, 4), (32, 3), (56, 3), (112, 1)]  # torchvision's at 0.35
    assert widths(0.35) == ([n for n, count in narrow for _ in range(count)], 1280)
    assert widths(1.4)[1] == 1792


def test_mobilenet_blocks_add_their_input_where_shapes_allow():
    model = published("mobilenet_v2")
    assert [i for i, block in enumerate(model.blocks) if block.residual] == [2, 4, 5, 7, 8, 9, 11, 12, 14, 15]
    strides = [block.depthwise.conv.strides for block in model.blocks]
    assert [i for i, s in enumerate(strides) if s == 2 or s == (2, 2)] == [1, 3, 6, 13]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: models.ConvNet((), rngs=r), "widths"),
        (lambda r: models.ConvNet((8, 16), residuals=(1,), rngs=r), "residuals must be 2 numbers"),
        (lambda r: models.ConvNet(dropout=1.5, rngs=r), "dropout"),
        (
            lambda r: models.ConvNet((4,), hidden=4, rngs=r)(jnp.ones((1, 8, 8, 1))),
            r"\(28, 28, 1\).*\(1, 8, 8, 1\)",
        ),
        (lambda r: models.ConvNet((4,), hidden=0, rngs=r)(jnp.ones((1, 8, 8, 3))), "built for images"),
        (lambda r: models.ResNetCifar(21, rngs=r), r"depth must be 6n \+ 2"),
        (lambda r: models.ResNetCifar(20, width=5, rngs=r), "width must be even"),
        (lambda r: models.ResNet((2, 0), bottleneck=True, rngs=r), "blocks"),
        (
            lambda r: models.ResNet((1,), bottleneck=True, stem="5x5", rngs=r),
            "stem='5x5' must be '7x7' or '3x3'",
        ),
        (lambda r: models.ResNet((1,), bottleneck=True, pool="none", rngs=r), "pool='none' 'max' or 'conv'"),
        (lambda r: models.ResNet((1,), bottleneck=True, squeeze=-0.1, rngs=r), "squeeze=-0.1 at least 0"),
        (
            lambda r: models.ResNet((1,), bottleneck=True, groups=0, rngs=r),
            "groups=0 and .* must be at least 1",
        ),
        (lambda r: models.resnet50(drop_path=1.0, rngs=r), "drop_path=1.0 must be in"),
        (lambda r: models.mobilenet_v2(width=0, rngs=r), "width=0 must be positive"),
        (lambda r: models.mobilenet_v3_small(width=0, rngs=r), "width=0 must be positive"),
        (lambda r: models.MobileNetV3((), hidden=8, rngs=r), "blocks must be one or more"),
        (lambda r: models.EfficientNet((), rngs=r), "one or more blocks"),
        (
            lambda r: models.EfficientNet((Stage(1, 3, 1, 4, 1),), dropout=-0.1, rngs=r),
            "dropout=-0.1 must be in",
        ),
        (lambda r: models.DenseNet((2, 0), rngs=r), "blocks"),
        (lambda r: models.Inception((), (), dropout=1, rngs=r), "dropout=1 must be in"),
        (lambda r: models.ConvNeXt((1, 1), (4,), rngs=r), "blocks=.* and widths="),
        (lambda r: models.mixer_s16(image_size=(32, 30), rngs=r), "32x30 is no multiple of patch_size=16"),
        (lambda r: small("mixer")(rngs=r)(jnp.ones((1, 12, 8, 3))), "built for images"),
        (lambda r: models.vit_s16(image_size=30, rngs=r), "30x30 is no multiple of patch_size=16"),
        (lambda r: models.VisionTransformer(width=10, depth=1, heads=3, rngs=r), "heads=3"),
        (lambda r: models.VisionTransformer(width=9, depth=1, heads=3, dropout=-1, rngs=r), "dropout"),
        (lambda r: small("vit")(rngs=r)(jnp.ones((1, 12, 8, 3))), "built for images"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        shapes_of(make)
    assert "\n" not in str(caught.value)
