"""Published weights as the parameters and state of our models.

The residual networks for CIFAR-10 of Y. Idelbayev, https://github.com/akamaster/pytorch_resnet_cifar10
(BSD 2-clause), are those of He et al. 2016, 4.2, with shortcuts of option A as in `jaxaccel.models.resnet_cifar`.
They take RGB / 255, less the mean (0.485, 0.456, 0.406), over the standard deviation (0.229, 0.224, 0.225).
"""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel import torch_files
from jaxaccel.errors import UserError
from jaxaccel.models.resnet_cifar import ResNetCifar
from jaxaccel.modules import abstract, as_model
from jaxaccel.trees import path_text

PyTree = Any

_LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


def cifar_resnet(path: str | Path) -> tuple[PyTree, PyTree]:
    """Parameters and state of the residual network for CIFAR in a PyTorch checkpoint.

    Depth, width, channels and classes are those of the file; ``len(params["stages"][0])`` is n of the depth
    6n + 2. BatchNorm's ``num_batches_tracked``, which nothing here counts, is left out.

    Args:
      path: a file of `torch.save` with a state dict, or with one under ``state_dict``, named as by
        `akamaster/pytorch_resnet_cifar10`; the prefix ``module.`` of DataParallel is optional.

    Returns:
      (params, state) as `modules.as_model` makes them of `ResNetCifar`: kernels (H, W, in, out) float32.

    Raises:
      UserError: the file cannot be read, lacks a tensor of the network or has one more, of another shape too.
    """
    tensors = _tensors(path)
    params, state = _shapes(path, tensors)
    leaves, treedef = jax.tree_util.tree_flatten_with_path((params, state))
    filled = [_leaf(path, tensors, path_text(where[1:]), shape) for where, shape in leaves]
    if tensors:
        raise UserError(
            f"{path} has {', '.join(sorted(tensors)[:3])} (of {len(tensors)}), which a CIFAR ResNet with option A "
            "shortcuts has not: give a checkpoint of akamaster/pytorch_resnet_cifar10"
        )
    return jax.tree.unflatten(treedef, filled)


def _tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The file's arrays by name, without DataParallel's prefix."""
    content = torch_files.read(path)
    found = content.get("state_dict", content)
    if not isinstance(found, dict):
        raise UserError(f"{path} has no dictionary of tensors under state_dict")
    return {
        str(name).removeprefix("module."): value
        for name, value in found.items()
        if isinstance(value, np.ndarray) and not str(name).endswith(".num_batches_tracked")
    }


def _shapes(path: str | Path, tensors: dict[str, np.ndarray]) -> tuple[PyTree, PyTree]:
    """The shapes of (params, state) of the network that has tensors of such names and shapes."""
    blocks = len([name for name in tensors if re.fullmatch(r"layer1\.\d+\.conv1\.weight", name)])
    first, last = tensors.get("conv1.weight"), tensors.get("linear.weight")
    if not blocks or first is None or first.ndim != 4 or last is None or last.ndim != 2:
        raise UserError(
            f"{path} holds no CIFAR ResNet (conv1.weight, layer1.0.conv1.weight, ..., linear.weight): "
            "give a checkpoint of akamaster/pytorch_resnet_cifar10"
        )
    facts = {"width": first.shape[0], "channels": first.shape[1], "classes": last.shape[0]}
    return abstract(as_model(functools.partial(ResNetCifar, 6 * blocks + 2), facts, ()))


def _leaf(path: str | Path, tensors: dict[str, np.ndarray], where: str, shape: Any) -> jax.Array:
    """The leaf at `where`, taken out of `tensors`."""
    name = _name(where)
    if name not in tensors:
        raise UserError(f"{path} lacks {name}: the file is of another network or incomplete")
    value = tensors.pop(name)
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    elif value.ndim == 2:
        value = value.T
    if value.shape != shape.shape:
        raise UserError(f"{path} has {name} as {value.shape}, turned to our order, and not as {shape.shape}")
    return jnp.asarray(value, shape.dtype)


def _name(where: str) -> str:
    """``stages/0/1/norm2/scale`` -> ``layer1.1.bn2.weight``."""
    *modules, leaf = where.split("/")
    text = ".".join([*modules, _LEAVES[leaf]])
    text = re.sub(r"^stages\.(\d+)", lambda stage: f"layer{int(stage[1]) + 1}", text)
    text = re.sub(r"^stem\.(conv|norm)", r"\g<1>1", text)
    return re.sub(r"^head", "linear", text).replace("norm", "bn")
