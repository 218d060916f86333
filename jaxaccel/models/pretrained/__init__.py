"""Published weights as the parameters and state of our models, or of anybody's."""

from jaxaccel.core.packages import find_package_file
from jaxaccel.models.pretrained.cifar import cifar_resnet
from jaxaccel.models.pretrained.load import Loaded, load_pretrained

__all__ = ["Loaded", "cifar_resnet", "find_package_file", "load_pretrained"]
