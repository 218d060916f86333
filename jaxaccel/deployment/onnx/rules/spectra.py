"""Fourier transforms of real signals: products with cosines and sines, for ONNX has no complex numbers."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxaccel.core.interpret import Rule
from jaxaccel.core.sites import Site
from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.tensor import ComplexTensor, Tensor, plain


def make_rules(builder: Builder) -> dict[str, Rule]:
    """The rules by primitive."""

    def part(number: int) -> Rule:
        return lambda site, x: x.parts[number] if isinstance(x, ComplexTensor) else NotImplemented

    return {"fft": lambda site, x: _transform(builder, site, x), "real": part(0), "imag": part(1)}


def _transform(builder: Builder, site: Site, x: Any) -> Any:
    """The transform of a real signal along the last axis (Oppenheim and Schafer, Discrete-Time Signal Processing)."""
    lengths = site.params["fft_lengths"]
    if site.params["fft_type"] != jax.lax.FftType.RFFT or len(lengths) != 1:
        return NotImplemented
    length = lengths[0]
    angles = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length
    shape = site.output.shape
    parts = [
        plain(
            builder.node("MatMul", builder.full(x), builder.constant(waves.astype(np.float32), base="waves")),
            shape,
            np.float32,
        )
        for waves in (np.cos(angles), -np.sin(angles))
    ]
    fields = {field.name: getattr(parts[0], field.name) for field in dataclasses.fields(Tensor)}
    return ComplexTensor(**{**fields, "dtype": np.dtype(np.complex64)}, parts=(parts[0], parts[1]))
