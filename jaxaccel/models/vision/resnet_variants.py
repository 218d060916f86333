"""The residual networks for ImageNet that papers name; `resnet` has their parts and sources."""

from functools import partial

from flax import nnx

from jaxaccel.models.vision.resnet import ResNet

_fifty = partial(ResNet, (3, 4, 6, 3), bottleneck=True)


def resnet18(*, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> ResNet:
    """11,689,512 parameters with 1000 classes."""
    return ResNet((2, 2, 2, 2), bottleneck=False, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet34(*, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs) -> ResNet:
    """21,797,672 parameters with 1000 classes."""
    return ResNet((3, 4, 6, 3), bottleneck=False, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet50(
    *, drop_path: float = 0.0, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> ResNet:
    """25,557,032 parameters with 1000 classes."""
    return _fifty(drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs)


def resnet50d(
    *, drop_path: float = 0.0, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> ResNet:
    """ResNet-50-D: 25,576,264 parameters with 1000 classes."""
    return _fifty(
        stem="3x3", average_shortcut=True,
        drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs,
    )  # fmt: skip


def resnet_rs50(
    *,
    dropout: float = 0.25,
    drop_path: float = 0.0,
    scan: bool = False,
    classes: int = 1000,
    channels: int = 3,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-RS-50: 35,691,912 parameters with 1000 classes; for images of 160x160."""
    return _fifty(
        stem="3x3", pool="conv", squeeze=1 / 4, average_shortcut=True, dropout=dropout,
        drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs,
    )  # fmt: skip


def resnext50_32x4d(
    *, drop_path: float = 0.0, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> ResNet:
    """ResNeXt-50 with 32 groups, of 4 channels in the first stage: 25,028,904 parameters with 1000 classes."""
    return _fifty(
        groups=32, group_width=4,
        drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs,
    )  # fmt: skip


def se_resnet50(
    *, drop_path: float = 0.0, scan: bool = False, classes: int = 1000, channels: int = 3, rngs: nnx.Rngs
) -> ResNet:
    """SE-ResNet-50: 28,088,024 parameters with 1000 classes."""
    return _fifty(
        squeeze=1 / 16, drop_path=drop_path, scan=scan, classes=classes, channels=channels, rngs=rngs
    )
