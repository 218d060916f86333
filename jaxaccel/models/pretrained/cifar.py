"""The residual networks for CIFAR-10 of Y. Idelbayev, https://github.com/akamaster/pytorch_resnet_cifar10 (BSD
2-clause).

They are those of He et al. 2016, 4.2, with shortcuts of option A as in `jaxaccel.models.vision.resnet_cifar`. They take
RGB / 255, less the mean (0.485, 0.456, 0.406), over the standard deviation (0.229, 0.224, 0.225).
"""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.models.pretrained.files import read
from jaxaccel.models.pretrained.load import load_pretrained
from jaxaccel.models.vision.resnet_cifar import ResNetCifar

PyTree = Any


def cifar_resnet(path: str | Path) -> tuple[PyTree, PyTree]:
    """Parameters and state of the residual network for CIFAR in a PyTorch checkpoint.

    Depth, width, channels and classes are those of the file; ``len(params["stages"][0])`` is n of the depth
    6n + 2.

    Args:
      path: a file of `torch.save` with a state dict, or with one under ``state_dict``, named as by
        `akamaster/pytorch_resnet_cifar10`.

    Returns:
      (params, state) as `models.adapter.as_model` makes them of `ResNetCifar`: kernels (H, W, in, out) float32.

    Raises:
      UserError: the file cannot be read, lacks a tensor of the network or has one more, of another shape too.
    """
    tensors = read(path)
    blocks = len([name for name in tensors if re.fullmatch(r"layer1\.\d+\.conv1\.weight", name)])
    first, last = tensors.get("conv1.weight"), tensors.get("linear.weight")
    if not blocks or first is None or first.ndim != 4 or last is None or last.ndim != 2:
        raise UserError(
            f"{path} holds no CIFAR ResNet (conv1.weight, layer1.0.conv1.weight, ..., linear.weight): "
            "give a checkpoint of akamaster/pytorch_resnet_cifar10"
        )
    facts = {"width": first.shape[0], "channels": first.shape[1], "classes": last.shape[0]}
    model = as_model(functools.partial(ResNetCifar, 6 * blocks + 2), facts, ())
    images = jax.ShapeDtypeStruct((1, 32, 32, first.shape[1]), jnp.float32)
    loaded = load_pretrained(model, path, inputs=(images,))
    if loaded.unused:
        raise UserError(
            f"{path} has {', '.join(loaded.unused[:3])} (of {len(loaded.unused)}), which a CIFAR ResNet with option A "
            "shortcuts has not: give a checkpoint of akamaster/pytorch_resnet_cifar10"
        )
    return loaded.params, loaded.state
