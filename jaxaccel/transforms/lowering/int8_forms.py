"""Products and convolutions of integers in the forms that XLA runs fast, or runs at all, and where float32 is better.

XLA:CPU has fused int8 kernels for ungrouped 2-D convolutions in NHWC with 32 channels or more; beside them int8 is up
to 17 times slower than float32 (`python -m benchmarks precision_layers`).

XLA:GPU gives convolutions of int8 to cuDNN, which has them in one direction only: forward, of int8 to float32, its sums
in int32 (jax-ml/jax#7637). XLA decides the direction by the sizes: a window larger than the result is taken for a
gradient by weights. `python -m benchmarks compiled` shows what the compiler makes of each form; nothing of it has been
timed.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core import kernels
from jaxaccel.core.kernels.library import computes_integers
from jaxaccel.transforms.lowering import convolution
from jaxaccel.transforms.lowering.base import KERNEL, XLA, Choice, Params
from jaxaccel.transforms.lowering.canonical import Canonical
from jaxaccel.transforms.lowering.matmul import get_free_sizes, multiply_flat

MIN_KERNEL_CHANNELS = 32
"""Channels from which on the CPU's int8 kernels are fast."""
MIN_OUTPUTS = 16
"""Output channels from which on int8 gains anything on the CPU."""
COPIES_PAY = jax.__version_info__ >= (0, 11)
"""Whether int8 products of copied windows beat float32 convolutions: since JAX 0.11 the CPU's are twice as fast."""
CUDNN_CHANNELS = 4
"""Channels of int8 come in multiples of so many to cuDNN; XLA fills others up with zeros."""
FLOAT32 = "float32"
"""The choice to leave a convolution as it was."""
Preference = Literal["auto", "int8"]
"""``int8`` leaves a convolution in float32 only where integers give wrong values or cannot be compiled."""


@dataclasses.dataclass(frozen=True)
class IntegerProduct:
    """A matrix product of integers as the compiler for `platform` wants it, decided last, after `jax.vmap`.

    XLA:CPU's int8 kernels want two rows and two columns at least. Padding a vector with zeros to two of them took from
    as long to an eighth of the time (4096 x 4096; `python -m benchmarks precision_layers`).
    """

    platform: str
    written: tuple[bool, bool] = (True, True)
    """On a GPU, which operands are written to memory before: activations, not weights, which are there already."""
    name: str = "int8"

    def __call__(self, primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Computes ``primitive.bind(lhs, rhs, **params)``."""
        if self.platform == "gpu":
            return multiply_flat(primitive, params, lhs, rhs, self.written)
        rows, columns = get_free_sizes(params, lhs.shape, rhs.shape)
        vector = rows != columns and 1 in (rows, columns)
        if self.platform != "cpu" or not vector or params.get("out_sharding") is not None:
            return primitive.bind(lhs, rhs, **params)
        pair, few = [lhs, rhs], 0 if rows == 1 else 1
        pair[few] = jnp.pad(pair[few][..., None], [(0, 0)] * pair[few].ndim + [(0, 1)])
        out = primitive.bind(*pair, **params)
        added = out.ndim - 1 if few else lhs.ndim - len(params["dimension_numbers"][0][0])
        return jax.lax.index_in_dim(out, 0, added, keepdims=False)

    def transposed(self, cotangent: int) -> "IntegerProduct":
        """Returns the same: integers have no derivative."""
        return self


@dataclasses.dataclass(frozen=True)
class IntegerConvolution:
    """A convolution of integers for a GPU, in one of the forms that are XLA's own convolution.

    `jax.vmap` over kernels makes a grouped convolution of it, which is computed in float32 then. So it is decided last.
    """

    form: str
    name: str = "int8"

    def __call__(self, primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Computes ``primitive.bind(lhs, rhs, **params)``."""
        if _is_grouped(params):
            lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
            out = primitive.bind(lhs, rhs, **{**params, "preferred_element_type": jnp.dtype("float32")})
            return out.astype(params["preferred_element_type"])
        if self.form == XLA:
            return primitive.bind(lhs, rhs, **params)
        return convolution.convolve(params, (lhs, rhs), self.form)

    def transposed(self, cotangent: int) -> "IntegerConvolution":
        """Returns the same: integers have no derivative."""
        return self


@dataclasses.dataclass(frozen=True)
class IntegerKernel:
    """A convolution of integers by oneDNN, with sums of int32; by XLA where `jax.vmap` made another of it."""

    name: str = KERNEL

    def __call__(self, primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Computes ``primitive.bind(lhs, rhs, **params)``."""
        if not has_integer_kernel(params, lhs, rhs):
            return primitive.bind(lhs, rhs, **params)
        return kernels.convolve_integers(params, lhs, rhs)

    def transposed(self, cotangent: int) -> "IntegerKernel":
        """Returns the same: integers have no derivative."""
        return self


def has_integer_kernel(params: Params, lhs: Any, rhs: Any) -> bool:
    """Tells whether oneDNN computes an int8 convolution of operands of these shapes, fast, on this processor."""
    if not computes_integers():
        return False
    lhs, rhs = (jax.ShapeDtypeStruct(x.shape, jnp.int8) for x in (lhs, rhs))
    return kernels.supports_integers(params, lhs, rhs)


def choose_int8_form(
    params: Params, lhs: Any, rhs: Any, platform: str, preference: Preference = "auto"
) -> Choice:
    """Chooses the form of an int8 convolution of operands of these shapes, or `FLOAT32`."""
    if platform == "gpu":
        return _choose_on_gpu(params, lhs, rhs)
    if platform != "cpu":
        return XLA, ""
    if has_integer_kernel(params, lhs, rhs):
        return KERNEL, ""
    form, reason = FLOAT32, "grouped int8 convolutions are slow on the CPU"
    if not _is_grouped(params):
        form, reason = _choose_on_cpu(params, lhs, rhs)
    return (form, reason) if preference == "auto" or form != FLOAT32 else (XLA, "")


def _choose_on_cpu(params: Params, lhs: Any, rhs: Any) -> Choice:
    """Chooses the form of an ungrouped one."""
    numbers = params["dimension_numbers"]
    if not 3 <= lhs.ndim <= 4:
        return FLOAT32, f"{lhs.ndim - 2}-D int8 convolutions are slow on the CPU"
    if any(d > 1 for d in params["lhs_dilation"]):
        return FLOAT32, "transposed int8 convolutions are slow on the CPU"
    features, outputs = lhs.shape[numbers.lhs_spec[1]], rhs.shape[numbers.rhs_spec[0]]
    window = math.prod(rhs.shape[axis] for axis in numbers.rhs_spec[2:])
    if outputs < MIN_OUTPUTS or features * window < MIN_KERNEL_CHANNELS:
        return FLOAT32, f"{features} x {outputs} channels are too few for int8 on the CPU"
    found = convolution.list_forms(params, lhs.shape, rhs.shape, integers=True)
    if "matmul" in found:
        return "matmul", ""
    if lhs.ndim == 4 and (numbers.lhs_spec != (0, 3, 1, 2) or numbers.out_spec != (0, 3, 1, 2)):
        return FLOAT32, "int8 convolutions with channels first are slow on the CPU"
    if min(features, outputs) >= MIN_KERNEL_CHANNELS:
        return ("channels last" if lhs.ndim == 3 else XLA), ""
    if not COPIES_PAY:
        return FLOAT32, f"{features} x {outputs} channels are too few for int8 on the CPU before JAX 0.11"
    block = features * math.prod(params["window_strides"])
    if block < MIN_KERNEL_CHANNELS and "space to depth" in found:
        return "space to depth", ""
    return ("patches", "") if "patches" in found else (FLOAT32, "few channels and a large window")


def _choose_on_gpu(params: Params, lhs: Any, rhs: Any) -> Choice:
    """Chooses what XLA:GPU compiles to a forward convolution or to matrix products, whatever is fast."""
    if _is_grouped(params):
        return FLOAT32, "grouped int8 convolutions give wrong values on GPUs (openxla/xla#49123)"
    if any(d > 1 for d in params["lhs_dilation"]):
        return FLOAT32, "cuDNN has no transposed int8 convolutions"
    if not convolution.are_known(params, lhs.shape, rhs.shape):
        return FLOAT32, "what cuDNN computes depends on the sizes, which are symbolic"
    c = Canonical.of(params, lhs.shape, rhs.shape)
    if c.taps == 1:
        return "matmul", ""
    found = convolution.list_forms(params, lhs.shape, rhs.shape, integers=True)
    apart = all(s >= w for s, w in zip(c.strides, c.window, strict=True))
    solid = len(c.window) > 2
    if "space to depth" in found and not solid and (c.features % CUDNN_CHANNELS or apart):
        blocks = [-(-w // s) for w, s in zip(c.window, c.strides, strict=True)]
        if _is_forward(blocks, c.sizes):
            return "space to depth", ""
    if not _is_forward(c.window, c.sizes):
        reason = "XLA:GPU takes it for a gradient by weights, which cuDNN has not in int8"
        return ("places", "") if "places" in found else (FLOAT32, reason)
    if solid or any(d > 1 for d in c.dilation):
        return FLOAT32, f"cuDNN's {'3-D' if solid else 'dilated'} int8 convolutions are not documented"
    return XLA, ""


def _is_forward(window: Sequence[int], sizes: Sequence[int]) -> bool:
    """Tells whether XLA:GPU sees a forward convolution in one of this window and result."""
    return all(w <= n for w, n in zip(window, sizes, strict=True))


def _is_grouped(params: Params) -> bool:
    return params["feature_group_count"] > 1 or params["batch_group_count"] > 1
