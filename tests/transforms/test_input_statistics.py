"""What `input_covariances` and `input_norms` find, against loops in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja


def windows(x, kernel, strides, padding, lhs_dilation, rhs_dilation):
    """Every window (N, taps * in) that a convolution of x (B, spatial..., in) multiplies, in float64."""
    x = np.asarray(x, np.float64)
    spatial = x.ndim - 2
    wide = np.zeros(
        (
            x.shape[0],
            *((n - 1) * d + 1 for n, d in zip(x.shape[1:-1], lhs_dilation, strict=True)),
            x.shape[-1],
        )
    )
    wide[(slice(None), *(slice(None, None, d) for d in lhs_dilation))] = x
    for axis, (low, high) in enumerate(padding, start=1):
        wide = np.pad(wide, [(max(low, 0), max(high, 0)) if a == axis else (0, 0) for a in range(wide.ndim)])
        cut = slice(max(-low, 0), wide.shape[axis] - max(-high, 0))
        wide = wide[(slice(None),) * axis + (cut,)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, rhs_dilation, strict=True)]
    rows = []
    starts = [range(0, n - r + 1, s) for n, r, s in zip(wide.shape[1:-1], reach, strides, strict=True)]
    for place in itertools.product(*starts):
        part = tuple(slice(p, p + r, d) for p, r, d in zip(place, reach, rhs_dilation, strict=True))
        rows.append(wide[(slice(None), *part)].reshape(len(x), -1))
    assert spatial == len(kernel)
    return np.concatenate(rows)


CASES = {
    "plain": ((7, 6), (3, 2), {}),
    "same": ((7, 6), (3, 3), {"padding": [(1, 1), (1, 1)]}),
    "strided": ((7, 6), (3, 3), {"strides": (2, 3), "padding": [(1, 1), (0, 2)]}),
    "dilated": ((9, 8), (3, 2), {"rhs_dilation": (2, 3), "padding": [(2, 2), (1, 0)]}),
    "transposed": ((4, 5), (3, 3), {"lhs_dilation": (2, 2), "padding": [(2, 2), (1, 2)]}),
    "transposed, strided": ((4, 5), (3, 2), {"lhs_dilation": (3, 2), "strides": (2, 1), "padding": [(1, 1), (1, 1)]}),
    "negative padding": ((7, 6), (3, 2), {"padding": [(-1, -1), (0, -2)]}),
    "one dimension": ((9,), (4,), {"strides": (2,), "lhs_dilation": (2,), "padding": [(3, 1)]}),
    "three dimensions": (
        (4, 5, 3), (2, 3, 1), {"strides": (1, 2, 1), "lhs_dilation": (1, 2, 1), "padding": [(0, 1)] * 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["channels last", "channels first"])
def test_a_convolution_has_a_row_for_each_output_pixel(name, layout):
    size, kernel, options = CASES[name]
    ones = (1,) * len(size)
    options = {
        "strides": ones,
        "padding": [(0, 0)] * len(size),
        "lhs_dilation": ones,
        "rhs_dilation": ones,
    } | options
    x = jax.random.normal(jax.random.key(0), (2, *size, 3)) + 0.3
    w = jax.random.normal(jax.random.key(1), (*kernel, 3, 4))
    letters = "DHW"[-len(size) :]
    last, first = f"N{letters}C", f"NC{letters}"
    data = last if layout == "channels last" else first
    given = x if layout == "channels last" else jnp.moveaxis(x, -1, 1)

    def f(params, x):
        return jax.lax.conv_general_dilated(
            x, params["kernel"], options["strides"], options["padding"], options["lhs_dilation"],
            options["rhs_dilation"], (data, f"{letters}IO", data),
        )  # fmt: skip

    rows = windows(x, kernel, *(options[k] for k in ("strides", "padding", "lhs_dilation", "rhs_dilation")))
    out = rows @ np.asarray(w, np.float64).reshape(-1, 4)
    found = f({"kernel": w}, given)
    assert found.size == out.size
    np.testing.assert_allclose(
        np.sort(found.ravel()), np.sort(out.ravel()), atol=1e-4
    )  # the reference itself
    covariance = ja.transforms.input_covariances(f, {"kernel": w}, [given, given])["kernel"]
    np.testing.assert_allclose(covariance, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
    norms = ja.transforms.input_norms(f, {"kernel": w}, [given])["kernel"]
    np.testing.assert_allclose(
        norms, np.sqrt(np.mean(np.asarray(x, np.float64) ** 2, tuple(range(x.ndim - 1)))), rtol=1e-5
    )


def test_a_matrix_has_a_row_for_each_vector_also_in_loops():
    x = jax.random.normal(jax.random.key(0), (5, 4, 3))
    params = {"kernel": jax.random.normal(jax.random.key(1), (3, 3))}

    def f(p, x):
        return jax.lax.scan(lambda c, _: (c @ p["kernel"], None), x, None, 2)[0]

    both = np.concatenate([x.reshape(-1, 3), (x @ params["kernel"]).reshape(-1, 3)]).astype(np.float64)
    np.testing.assert_allclose(
        ja.transforms.input_covariances(f, params, [x])["kernel"], both.T @ both / len(both), rtol=1e-4
    )
    np.testing.assert_allclose(
        ja.transforms.input_norms(f, params, [x])["kernel"], np.sqrt((both**2).mean(0)), rtol=1e-5
    )


def test_what_is_no_kernel_of_inputs_first_is_left_out():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    square = jax.random.normal(jax.random.key(1), (4, 4))
    kernels = {
        "grouped": jax.random.normal(jax.random.key(2), (3, 3, 1, 4)),
        "turned": square,
        "reversed": jax.random.normal(jax.random.key(3), (3, 3, 4, 4)),
        "batches": jax.random.normal(jax.random.key(5), (3, 3, 4, 2)),
        "plain": square,
    }

    def conv(x, w, **groups):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **groups
        )

    def f(p, x):
        y = conv(x, p["grouped"], feature_group_count=4) @ p["turned"].T
        y = conv(y, p["reversed"][::-1, ::-1]) + conv(x, p["batches"], batch_group_count=2).sum()
        return y @ p["plain"]

    for found in (
        ja.transforms.input_covariances(f, kernels, [x]),
        ja.transforms.input_norms(f, kernels, [x]),
    ):
        assert found.keys() == {"plain"}
    with pytest.raises(ja.UserError, match="whose first axes are its inputs"):
        ja.transforms.input_covariances(lambda p, x: x @ p["turned"].T, kernels, [x])


def test_a_transposed_convolution_is_truncated_where_it_costs_least():
    """Covariances are for `low_rank`: the error on such inputs is less than without them, in one dimension too."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6)) * np.logspace(0, -3, 6)
    x = jnp.asarray(rng.normal(size=(8, 20, 6)) @ mixing, jnp.float32)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 6, 8)), jnp.float32)}

    def f(p, x):
        return jax.lax.conv_general_dilated(
            x, p["kernel"], (1,), [(2, 2)], (2,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    def error(**options):
        small = ja.low_rank(params, rank=3, **options)
        return float(jnp.mean((ja.transforms.compressed(f)(small, x) - f(params, x)) ** 2))

    assert error(covariances=ja.transforms.input_covariances(f, params, [x])) < 0.3 * error()
