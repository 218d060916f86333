"""Products and convolutions by NumPy, with their gradients, on numbers that every narrow type holds exactly.

Whole numbers times a power of two are what int8 quantizes them to, and what bfloat16, float16, TF32 and (up to 7)
float8 round them to. So what a device computes of them is right to float32's rounding, or wrong.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(seed, shape, limit, axes, unit=2.0**-4):
    """Whole numbers up to `limit` times `unit`; the first along `axes` is the largest, so that it sets the scale."""
    numbers = np.random.default_rng(seed).integers(-limit, limit + 1, shape)
    numbers[tuple(0 if axis in axes else slice(None) for axis in range(len(shape)))] = limit
    return (numbers * unit).astype(np.float32)


def complete(options, x, w):
    """The options of a convolution, as `jax.lax.conv_general_dilated` takes them."""
    defaults = {"window_strides": (1,) * (len(x) - 2), "padding": "SAME", "dimension_numbers": NHWC}
    return defaults | options


def convolve(options, x, w):
    return jax.lax.conv_general_dilated(x, w, **complete(options, x.shape, w.shape))


class Convolution:
    """A convolution by its definition: each result is a sum over the places of its window, gathered by their index."""

    def __init__(self, options, x, w):
        options = complete(options, x, w)
        numbers = jax.lax.conv_dimension_numbers(x, w, options["dimension_numbers"])
        self.x_spec, self.w_spec, self.y_spec = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        self.groups = options.get("feature_group_count", 1)
        self.x = tuple(x[axis] for axis in self.x_spec)  # (N, C, places)
        self.w = tuple(w[axis] for axis in self.w_spec)  # (features, channels of a group, window)
        ndim = len(x) - 2
        dilation = options.get("rhs_dilation", (1,) * ndim)
        spans = [(k - 1) * d + 1 for k, d in zip(self.w[2:], dilation, strict=True)]
        places = np.arange(np.prod(self.x)).reshape(self.x) + 1  # 0 is where there is nothing
        for axis, d in enumerate(options.get("lhs_dilation", (1,) * ndim), 2):
            wide = np.zeros([(n - 1) * d + 1 if a == axis else n for a, n in enumerate(places.shape)], int)
            wide[(slice(None),) * axis + (slice(None, None, d),)] = places
            places = wide
        strides, padding = options["window_strides"], options["padding"]
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(places.shape[2:], spans, strides, padding)
        places = np.pad(places, [(0, 0), (0, 0), *padding])
        places = np.lib.stride_tricks.sliding_window_view(places, spans, tuple(range(2, 2 + ndim)))
        steps = [slice(None, None, step) for step in (*strides, *dilation)]
        places = places[(slice(None), slice(None), *steps)]  # (N, C, results, window)
        self.results = places.shape[2 : 2 + ndim]
        n, c = self.x[:2]
        places = places.reshape(n, self.groups, c // self.groups, np.prod(self.results), -1)
        self.places = places.transpose(0, 1, 3, 2, 4).reshape(n, self.groups, places.shape[3], -1)

    def forward(self, x, w):
        y = np.einsum("ngok,gfk->ngfo", self._gather(x), self._flatten(w), optimize=True)
        return self._back(y.reshape(self.x[0], self.w[0], *self.results), self.y_spec)

    def gradients(self, x, w, g):
        """(by w, by x) of the sum of g times the result."""
        g = np.asarray(g, np.float64).transpose(self.y_spec)
        g = g.reshape(self.x[0], self.groups, self.w[0] // self.groups, -1)
        by_w = np.einsum("ngfo,ngok->gfk", g, self._gather(x), optimize=True).reshape(self.w)
        by_x = np.zeros(np.prod(self.x) + 1)
        np.add.at(by_x, self.places, np.einsum("ngfo,gfk->ngok", g, self._flatten(w), optimize=True))
        return self._back(by_w, self.w_spec), self._back(by_x[1:].reshape(self.x), self.x_spec)

    def _gather(self, x):
        flat = np.asarray(x, np.float64).transpose(self.x_spec).ravel()
        return np.concatenate([[0.0], flat])[self.places]

    def _flatten(self, w):
        w = np.asarray(w, np.float64).transpose(self.w_spec)
        return w.reshape(self.groups, self.w[0] // self.groups, -1)

    @staticmethod
    def _back(values, spec):
        return values.transpose(np.argsort(spec))


def check(request, got, want, limit):
    """Checks the largest error, as a share of the largest value, and writes it down before it is judged."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    error = float(np.abs(got - want).max() / np.abs(want).max())
    note(request, error=error, limit=limit)
    assert error <= limit  # NaN is not


def note(request, **found):
    """Adds a line of JSON to the file that JAXACCEL_TEST_NOTES names, if any."""
    if file := os.environ.get("JAXACCEL_TEST_NOTES"):
        line = json.dumps({"test": request.node.name, "backend": jax.default_backend(), **found})
        with Path(file).open("a", encoding="utf-8") as notes:
            notes.write(line + "\n")
