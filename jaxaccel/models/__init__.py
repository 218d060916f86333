"""Image classifiers in plain Flax NNX: nothing here depends on the rest of jaxaccel."""

from typing import TYPE_CHECKING

import lazy_loader

from jaxaccel.models.vision.cifar_fast import CifarFast, cifar_fast
from jaxaccel.models.vision.convnet import ConvNet
from jaxaccel.models.vision.convnext import ConvNeXt, convnext_tiny
from jaxaccel.models.vision.densenet import DenseNet, densenet121
from jaxaccel.models.vision.efficientnet import EfficientNet, efficientnet_b0, efficientnet_v2_s
from jaxaccel.models.vision.inception import Inception, googlenet, inception_v3
from jaxaccel.models.vision.mixer import Mixer, mixer_b16, mixer_s16
from jaxaccel.models.vision.mobilenet import (
    MobileNetV2,
    MobileNetV3,
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from jaxaccel.models.vision.resnet import ResNet
from jaxaccel.models.vision.resnet_cifar import ResNetCifar, resnet20, resnet32, resnet44, resnet56, resnet110
from jaxaccel.models.vision.resnet_variants import (
    resnet18,
    resnet34,
    resnet50,
    resnet50d,
    resnet_rs50,
    resnext50_32x4d,
    se_resnet50,
)
from jaxaccel.models.vision.vit import VisionTransformer, vit_b16, vit_s16, vit_ti16

__all__ = [
    "CifarFast",
    "ConvNeXt",
    "ConvNet",
    "DenseNet",
    "EfficientNet",
    "Inception",
    "Mixer",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
    "ResNetCifar",
    "VisionTransformer",
    "cifar_fast",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mixer_b16",
    "mixer_s16",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet50d",
    "resnet56",
    "resnet110",
    "resnet_rs50",
    "resnext50_32x4d",
    "se_resnet50",
    "vit_b16",
    "vit_s16",
    "vit_ti16",
]

# Not models, but what makes one of another or fills it with published weights: imported when they are first used.
__getattr__, *_ = lazy_loader.attach(
    __name__,
    submod_attrs={"linear_probe": ["linear_probe"], "pretrained": ["cifar_resnet", "load_pretrained"]},
)
if TYPE_CHECKING:
    from jaxaccel.models.linear_probe import linear_probe as linear_probe
    from jaxaccel.models.pretrained import cifar_resnet as cifar_resnet
    from jaxaccel.models.pretrained import load_pretrained as load_pretrained
