"""Sites: matrix products and convolutions as they occur in well-known networks, and some that are unusual."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Site:
    """One product of inputs with weights."""

    name: str
    inputs: tuple[int, ...]
    """Shape of one example."""
    weights: tuple[int, ...]
    f: Callable[[jax.Array, jax.Array], jax.Array]
    """(weights, inputs) -> outputs."""


_LAYOUTS = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}


def _dot(name: str, inputs: tuple[int, ...], features: int) -> Site:
    def f(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))

    return Site(f"dot {name}", inputs, (inputs[-1], features), f)


def _conv(
    name: str,
    inputs: tuple[int, ...],
    features: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    layout: Sequence[str] = (),
    dilation: int = 1,
    **params: Any,
) -> Site:
    """Makes a convolution of a square window with padding SAME; `layout` moves axes of NHWC, HWIO and NHWC."""
    dims = len(inputs) - 1
    numbers = tuple(layout or _LAYOUTS[dims + 2])
    sizes = {**dict.fromkeys("DHW"[-dims:], size), "I": inputs[-1] // groups, "O": features}
    example = dict(zip(_LAYOUTS[dims + 2][0][1:], inputs, strict=True))
    f = partial(
        _convolve, window_strides=(stride,) * dims, padding="SAME", rhs_dilation=(dilation,) * dims,
        dimension_numbers=numbers, feature_group_count=groups, **params,
    )  # fmt: skip
    return Site(
        f"conv {name}",
        tuple(example[axis] for axis in numbers[0][1:]),
        tuple(sizes[axis] for axis in numbers[1]),
        f,
    )


def _convolve(w: jax.Array, x: jax.Array, **params: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, **params)


def _transposed(name: str, inputs: tuple[int, ...], features: int) -> Site:
    def f(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), [(2, 2), (2, 2)], lhs_dilation=(2, 2), dimension_numbers=_LAYOUTS[4]
        )

    return Site(f"conv {name}", inputs, (4, 4, inputs[-1], features), f)


NCHW = ("NCHW", "OIHW", "NCHW")
SITES: tuple[Site, ...] = (
    _dot("mlp 784-1024", (784,), 1024),
    _dot("mlp 1024-1024", (1024,), 1024),
    _dot("llm 4096-4096", (4096,), 4096),
    _dot("mlp 1024-10", (1024,), 10),
    _dot("lstm gate", (256,), 256),
    _dot("lstm four gates", (256,), 1024),
    _dot("resnet50 head", (2048,), 1000),
    _dot("vit_s16 embed", (196, 768), 384),
    _dot("vit_s16 query", (197, 384), 384),
    _dot("vit_s16 up", (197, 384), 1536),
    _dot("vit_s16 down", (197, 1536), 384),
    _conv("mnist stem", (28, 28, 1), 32, 3),
    _conv("resnet20 stem", (32, 32, 3), 16, 3),
    _conv("resnet20 stage 1", (32, 32, 16), 16, 3),
    _conv("resnet20 stage 2, stride 2", (32, 32, 16), 32, 3, stride=2),
    _conv("resnet20 stage 2", (16, 16, 32), 32, 3),
    _conv("resnet20 stage 3, stride 2", (16, 16, 32), 64, 3, stride=2),
    _conv("resnet20 stage 3", (8, 8, 64), 64, 3),
    _conv("resnet50 stem", (224, 224, 3), 64, 7, stride=2),
    _conv("resnet50 stage 1, 1x1 down", (56, 56, 256), 64, 1),
    _conv("resnet50 stage 1, 3x3", (56, 56, 64), 64, 3),
    _conv("resnet50 stage 1, 1x1 up", (56, 56, 64), 256, 1),
    _conv("resnet50 stage 2, 3x3 stride 2", (56, 56, 128), 128, 3, stride=2),
    _conv("resnet50 stage 2, 3x3", (28, 28, 128), 128, 3),
    _conv("resnet50 stage 2, shortcut 1x1 stride 2", (56, 56, 256), 512, 1, stride=2),
    _conv("resnet50 stage 3, 3x3", (14, 14, 256), 256, 3),
    _conv("resnet50 stage 4, 3x3", (7, 7, 512), 512, 3),
    _conv("resnet50 stage 4, 1x1 up", (7, 7, 512), 2048, 1),
    _conv("mobilenet depthwise 112", (112, 112, 32), 32, 3, groups=32),
    _conv("mobilenet depthwise 28, stride 2", (28, 28, 256), 256, 3, stride=2, groups=256),
    _conv("mobilenet depthwise 14", (14, 14, 512), 512, 3, groups=512),
    _conv("mobilenet pointwise 14", (14, 14, 512), 512, 1),
    _conv("resnext grouped 14", (14, 14, 256), 256, 3, groups=32),
    _conv("1-D, 64 channels", (1000, 64), 64, 3),
    _conv("1-D, 16 channels", (1000, 16), 16, 5),
    _conv("3-D, 32 channels", (8, 28, 28, 32), 32, 3),
    _transposed("transposed, 64 to 32", (14, 14, 64), 32),
    _conv("dilated, 64 channels", (28, 28, 64), 64, 3, dilation=2),
    _conv("NCHW, 64 channels", (28, 28, 64), 64, 3, layout=NCHW),
    _conv("NCHW, 8 channels", (28, 28, 8), 32, 3, layout=NCHW),
    _conv("NCHW, 1x1", (28, 28, 64), 128, 1, layout=NCHW),
    _conv("8 to 8 channels", (28, 28, 8), 8, 3),
    _conv("24 to 24 channels", (28, 28, 24), 24, 3),
    _conv("48 to 48 channels", (28, 28, 48), 48, 3),
)


def pick_sites(words: Sequence[str], kind: str = "") -> list[Site]:
    """Picks the sites whose names begin with `kind` and hold one of `words`."""
    return [site for site in SITES if site.name.startswith(kind) and any(word in site.name for word in words)]
