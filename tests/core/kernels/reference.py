"""Convolutions in float64 by NumPy, one place of the window at a time, and what a program calls."""

import math

import jax
import numpy as np
import pytest

from jaxaccel.core import kernels

needs_kernels = pytest.mark.skipif(not kernels.is_available(), reason=kernels.why_unavailable() or "-")
LAYOUTS = {
    1: [("NWC", "WIO", "NWC"), ("NCW", "OIW", "NCW"), ("CWN", "WIO", "NWC")],
    2: [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW")],
    3: [("NDHWC", "DHWIO", "NDHWC"), ("NCDHW", "OIDHW", "NCDHW")],
}


def pretend(monkeypatch, isa, reason=""):
    """Lets the kernels be those of another processor, or missing for that reason."""
    monkeypatch.setenv("JAXACCEL_ONEDNN", "1")
    monkeypatch.setattr("jaxaccel.core.kernels.library._register", lambda: (isa, reason))


def read_params(lhs, rhs, **options):
    """The parameters of the one primitive that `jax.lax.conv_general_dilated` makes."""
    traced = jax.make_jaxpr(lambda a, b: jax.lax.conv_general_dilated(a, b, **options))(lhs, rhs)
    return traced.jaxpr.eqns[-1].params


def convolve(params, lhs, rhs):
    """conv_general_dilated with groups of features, in float64."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    x = np.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])).astype(
        np.float64
    )
    w = np.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])).astype(
        np.float64
    )
    n = len(w.shape) - 2
    for axis, (inner, (low, high)) in enumerate(
        zip(params["lhs_dilation"], params["padding"], strict=True), start=1
    ):
        wide = np.zeros((*x.shape[:axis], (x.shape[axis] - 1) * inner + 1, *x.shape[axis + 1 :]))
        wide[(slice(None),) * axis + (slice(None, None, inner),)] = x
        x = np.pad(wide, [(low, high) if a == axis else (0, 0) for a in range(n + 2)])
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[:n], params["rhs_dilation"], strict=True)]
    places = [
        (s - r) // t + 1 for s, r, t in zip(x.shape[1:-1], reach, params["window_strides"], strict=True)
    ]
    out = np.zeros((x.shape[0], *places, w.shape[-1]))
    inside, outside = w.shape[-2], w.shape[-1] // groups
    for place in np.ndindex(*w.shape[:n]):
        steps = zip(place, params["rhs_dilation"], params["window_strides"], places, strict=True)
        tap = x[(slice(None), *(slice(i * d, i * d + (p - 1) * t + 1, t) for i, d, t, p in steps))]
        for g in range(groups):
            columns = slice(g * outside, (g + 1) * outside)
            out[..., columns] += tap[..., g * inside : (g + 1) * inside] @ w[place][:, columns]
    order = np.argsort((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
    return np.transpose(out, order)


def count_calls(f, *args):
    """Calls of kernels in the compiled program."""
    return jax.jit(f).lower(*args).compile().as_text().count('custom_call_target="jaxaccel_onednn')


def make_operands(rng, spatial, layout, *, batch, channels, features, groups, window):
    """Operands of small whole numbers' tenths, so that bfloat16 rounds some of them."""
    named = {"N": batch, "C": channels, "I": channels // groups, "O": features}
    axes = "DHW"[-len(spatial) :] if len(spatial) > 1 else "W"
    lhs = [named.get(a) or spatial[axes.index(a)] for a in layout[0]]
    rhs = [named.get(a) or window[axes.index(a)] for a in layout[1]]
    scale = 1 / math.sqrt(math.prod(window) * channels / groups)
    return rng.normal(size=lhs).astype(np.float32), (scale * rng.normal(size=rhs)).astype(np.float32)
