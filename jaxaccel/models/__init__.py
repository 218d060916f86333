"""Image classifiers in plain Flax NNX: nothing here depends on the rest of jaxaccel."""

from jaxaccel.models.convnet import ConvNet
from jaxaccel.models.mobilenet import MobileNetV2, mobilenet_v2
from jaxaccel.models.resnet import ResNet, resnet18, resnet34, resnet50
from jaxaccel.models.resnet_cifar import ResNetCifar, resnet20, resnet32, resnet44, resnet56, resnet110
from jaxaccel.models.vit import VisionTransformer, vit_b16, vit_s16, vit_ti16

__all__ = [
    "ConvNet",
    "MobileNetV2",
    "ResNet",
    "ResNetCifar",
    "VisionTransformer",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "vit_b16",
    "vit_s16",
    "vit_ti16",
]
