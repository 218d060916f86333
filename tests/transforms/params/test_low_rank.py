"""Truncated decompositions, against NumPy's and against the dense products that they stand for."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.low_rank import spectra
from jaxaccel.transforms.params.svd import randomized_svd


def conv(x, kernel, strides=(1, 1), padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def thin(rows, columns, rank, seed=0):
    return random(rows, rank, seed=seed) @ random(rank, columns, seed=seed + 1)


def test_the_factors_are_the_nearest_of_their_rank():
    w = random(20, 12)
    found = ja.low_rank({"kernel": w}, rank=5)["kernel"]
    u, s, v = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
    np.testing.assert_allclose(found.materialize(), (u[:, :5] * s[:5]) @ v[:5], atol=1e-5)
    assert found.shape == (20, 12) and found.left.shape == (20, 5) and found.rank == 5
    assert found.nbytes == 4 * 5 * 32


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), "SAME"), ((2, 2), ((1, 1), (1, 1))), ((2, 1), "VALID")]
)
def test_two_convolutions_compute_the_dense_one(form, strides, padding):
    w, x = random(3, 3, 8, 12), random(2, 9, 11, 8, seed=1)
    params = ja.low_rank({"kernel": w}, rank=6, form=form)
    f = lambda p, x: conv(x, p["kernel"], strides, padding)  # noqa: E731
    dense = f({"kernel": params["kernel"].materialize()}, x)
    found = jax.jit(ja.transforms.compressed(f, strict=True))(params, x)
    np.testing.assert_allclose(found, dense, atol=1e-4)
    work = ja.params.count_multiply_adds(f, params, x)
    assert (
        set(work) == {"kernel"}
        and work["kernel"] < ja.params.count_multiply_adds(f, {"kernel": w}, x)["kernel"]
    )


@pytest.mark.parametrize(("window", "strides"), [((5,), (2,)), ((2, 3, 2), (1, 2, 1))])
def test_convolutions_of_one_and_of_three_dimensions(window, strides):
    n = len(window)
    w, x = random(*window, 8, 12), random(2, *[7] * n, 8, seed=1)
    numbers = jax.lax.conv_dimension_numbers(
        x.shape, w.shape, ("N" + "DHW"[-n:] + "C", "DHW"[-n:] + "IO", "N" + "DHW"[-n:] + "C")
    )

    def f(p, x):
        return jax.lax.conv_general_dilated(x, p["kernel"], strides, "SAME", dimension_numbers=numbers)

    params = ja.low_rank({"kernel": w}, rank=4)
    dense = f({"kernel": params["kernel"].materialize()}, x)
    found = jax.jit(ja.transforms.compressed(f, strict=True))(params, x)
    np.testing.assert_allclose(found, dense, atol=1e-4)
    outputs = dense.size // 12
    work = ja.params.count_multiply_adds(f, params, x)["kernel"]
    assert work == outputs * 4 * (8 * np.prod(window) + 12)


def test_what_is_materialized_counts_as_the_dense_product():
    w, x = random(5, 1, 24), random(2, 9, 24, seed=1)

    def f(p, x):
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x, p["kernel"], (1,), "SAME", dimension_numbers=numbers, feature_group_count=24
        )

    params = ja.low_rank({"kernel": w}, rank=2)
    assert isinstance(params["kernel"], ja.arrays.LowRankArray)
    want = ja.params.count_multiply_adds(f, {"kernel": w}, x)
    assert ja.params.count_multiply_adds(f, params, x) == want == {"kernel": 2 * 9 * 24 * 5}


def test_a_spatial_kernel_of_full_rank_is_itself():
    w = random(3, 5, 4, 7)
    found = ja.low_rank({"kernel": w}, rank=12, form="spatial")["kernel"]
    if isinstance(found, ja.arrays.LowRankArray):  # else it would not be smaller, and stays dense
        np.testing.assert_allclose(found.materialize(), w, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weight_first", [False, True])
def test_products_on_either_side(transposed, weight_first):
    w = random(10, 14)
    params = ja.low_rank({"kernel": w}, rank=3)
    x = random(5, 14 if transposed else 10, seed=2)

    def f(p, x):
        kernel = p["kernel"].T if transposed else p["kernel"]
        return (kernel.T @ x.T) if weight_first else x @ kernel

    dense = f({"kernel": params["kernel"].materialize()}, x)
    found = ja.transforms.compressed(f, strict=True)(params, x)
    assert found.shape == dense.shape
    np.testing.assert_allclose(found, dense, atol=1e-4)


def test_heads():
    query, out, x = random(16, 4, 4), random(4, 4, 16, seed=1), random(3, 16, seed=2)
    params = ja.low_rank({"query": {"kernel": query}, "out": {"kernel": out}}, rank=4)
    assert params["query"]["kernel"].left.shape == (16, 4) and params["out"]["kernel"].right.shape == (4, 16)

    def f(p, x):
        y = jnp.einsum("nd,dhk->nhk", x, p["query"]["kernel"])
        return jnp.einsum("nhk,hkd->nd", y, p["out"]["kernel"])

    dense = f(
        jax.tree.map(
            lambda w: w.materialize(), params, is_leaf=lambda w: isinstance(w, ja.arrays.LowRankArray)
        ),
        x,
    )
    np.testing.assert_allclose(ja.transforms.compressed(f, strict=True)(params, x), dense, atol=1e-4)


@pytest.mark.parametrize(
    "take", [lambda table, ids: table[ids], lambda table, ids: jnp.take(table, ids, axis=0)]
)
def test_rows_are_looked_up_in_a_factor(take):
    table = jax.random.normal(jax.random.key(0), (50, 4)) @ jax.random.normal(jax.random.key(1), (4, 16))
    dense, thin = {"embedding": table}, ja.low_rank({"embedding": table}, rank=4, where="embedding")
    ids = jnp.array([[0, 3, 49], [7, 60, -1]])  # beyond the end as JAX has it: clamped, or NaN

    def f(params, ids):
        return take(params["embedding"], ids)

    g = ja.transforms.compressed(f)
    np.testing.assert_allclose(g(thin, ids), f(dense, ids), rtol=2e-5, atol=2e-6)
    assert "f32[50,16]" not in jax.jit(g).lower(thin, ids).compile().as_text()
    grads = jax.grad(lambda params: (g(params, ids[:1]) ** 2).sum())(thin)["embedding"]
    rows = jnp.zeros_like(table).at[ids[0]].set(2 * table[ids[0]])
    np.testing.assert_allclose(grads.left, rows @ thin["embedding"].right.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        ja.int8(f)(ja.quantize(thin, "**"), ids[:1]), f(dense, ids[:1]), atol=0.02 * float(abs(table).max())
    )


def test_gradients_reach_the_factors():
    params, x = ja.low_rank({"kernel": random(10, 8)}, rank=2), random(4, 10, seed=1)
    f = ja.transforms.compressed(lambda p, x: jnp.sum(jnp.tanh(x @ p["kernel"])))
    grads = jax.grad(f)(params, x)["kernel"]
    left, right = params["kernel"].left, params["kernel"].right
    expected = jax.grad(lambda a, b: jnp.sum(jnp.tanh(x @ (a @ b))), (0, 1))(left, right)
    np.testing.assert_allclose(grads.left, expected[0], atol=1e-5)
    np.testing.assert_allclose(grads.right, expected[1], atol=1e-5)


def test_low_rank_then_int8_then_bfloat16():
    params, x = {"kernel": thin(64, 64, 8)}, random(16, 64, seed=3)
    f = lambda p, x: x @ p["kernel"]  # noqa: E731
    q = ja.quantize(ja.low_rank(params, rank=8))
    assert isinstance(q["kernel"].left, ja.arrays.QuantArray) and isinstance(
        q["kernel"].right, ja.arrays.QuantArray
    )
    dense = f(params, x)
    for g in (ja.int8(f, strict=True), ja.bfloat16(ja.int8(f))):
        found = jax.jit(g)(q, x)
        assert np.abs(found - dense).max() < 0.03 * np.abs(dense).max()
    text = jax.jit(ja.int8(f)).lower(q, x).as_text()
    assert text.count("xi8>, tensor<64x8xi8>) -> tensor<16x8xi32>") == 1


def test_energy_and_flops_choose_ranks():
    params = {"a": {"kernel": thin(32, 32, 4)}, "b": {"kernel": random(32, 32, seed=5)}}
    kept = ja.low_rank(params, energy=0.999)
    assert kept["a"]["kernel"].rank <= 4
    assert not isinstance(kept["b"]["kernel"], ja.arrays.LowRankArray)  # a random matrix has no thin factors
    half = ja.low_rank(params, flops=0.65)
    sizes = [x.size for x in jax.tree.leaves(half)]
    assert sum(sizes) <= 0.65 * 2048
    assert half["a"]["kernel"].rank == 4 and not isinstance(half["b"]["kernel"], ja.arrays.LowRankArray)
    rows = {s.path: s for s in spectra(params)}
    assert rows["a/kernel"].stable_rank < 4 < rows["b/kernel"].stable_rank
    assert rows["a/kernel"].rank_of(0.999) <= 4


def test_covariances_move_the_error_to_where_no_inputs_are():
    # Inputs live in 6 of 24 dimensions: of rank 6 nothing is lost on them, though the weight has full rank.
    basis = np.asarray(random(6, 24, seed=7))
    x = random(512, 6, seed=8) @ basis
    params = {"kernel": random(24, 24)}
    f = lambda p, x: x @ p["kernel"]  # noqa: E731
    seen = ja.transforms.input_covariances(f, params, [x[:256], x[256:]])
    np.testing.assert_allclose(seen["kernel"], x.T @ x / 512, rtol=1e-4, atol=1e-3)
    plain, aware = ja.low_rank(params, rank=6), ja.low_rank(params, rank=6, covariances=seen)
    dense = f(params, x)
    error = [
        np.abs(ja.transforms.compressed(f)(p, x) - dense).max() / np.abs(dense).max() for p in (plain, aware)
    ]
    assert error[1] < 0.01 < 0.1 < error[0]


def test_covariances_of_a_convolution_are_those_of_its_windows():
    w, x = random(3, 3, 2, 8), random(2, 5, 5, 2, seed=1)
    seen = ja.transforms.input_covariances(
        lambda p, x: conv(x, p["kernel"], padding="VALID"), {"kernel": w}, [x]
    )["kernel"]
    windows = [x[n, i : i + 3, j : j + 3].ravel() for n in range(2) for i in range(3) for j in range(3)]
    np.testing.assert_allclose(
        seen,
        np.cov(np.array(windows).T, bias=True) + np.outer(*2 * [np.mean(windows, 0)]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_large_weights_are_cut_as_small_ones_are(monkeypatch):
    params = {"kernel": random(60, 40) * jnp.exp(-jnp.arange(40) / 10)}

    def ranks():
        found = [ja.low_rank(params, energy=share)["kernel"] for share in (0.5, 0.9, 0.99, 0.9999)]
        found += [ja.low_rank(params, rank=rank)["kernel"] for rank in (3, 15, 23, 24)]
        (spectrum,) = spectra(params)
        return [getattr(w, "rank", None) for w in found], spectrum.energy[:8], spectrum.stable_rank

    expected, energy, stable = ranks()
    assert 8 < expected[2] < 23 and expected[3] is None and expected[4:] == [3, 15, 23, None]
    monkeypatch.setattr(sys.modules["jaxaccel.transforms.params.svd"], "MAX_EXACT_SIZE", 16)
    found = ranks()
    assert found[0] == expected
    np.testing.assert_allclose(found[1], energy, rtol=1e-2)
    assert found[2] == pytest.approx(stable, rel=1e-3)


def test_random_projections_find_the_largest():
    w = np.asarray(thin(300, 200, 20) + 1e-3 * random(300, 200, seed=9))
    _, s, _ = np.linalg.svd(w)
    u, values, v = randomized_svd(w, 15)
    np.testing.assert_allclose(values, s[:15], rtol=1e-4)
    best = np.sqrt((s[15:] ** 2).sum())
    assert np.linalg.norm(w - (u * values) @ v) < 1.01 * best


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of"),
        ({"rank": 3, "energy": 0.9}, "exactly one of"),
        ({"energy": 1.5}, r"energy is a share, in \(0, 1\], got 1.5"),
        ({"flops": 1e-4}, "already ranks of 1 need"),
        ({"rank": 0}, "at least 1"),
        ({"rank": {"kernel": 0}}, "rank of kernel must be a whole number of at least 1, got 0"),
        ({"rank": {"kernel": 2.5}}, r"rank\['kernel'\] must be a whole number, got 2\.5"),
        ({"rank": {"kernle": 3}}, "rank has 3 for kernle, which is none .*; nearest: kernel"),
        ({"rank": 2, "form": "tucker"}, "form must be"),
        ({"rank": 2, "where": "x"}, "matches none"),
        ({"rank": 2, "covariances": {"kernel": np.eye(3)}}, r"must be \(20, 20\)"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, says):
    with pytest.raises(UserError, match=says):
        ja.low_rank({"kernel": random(20, 12)}, **options)
