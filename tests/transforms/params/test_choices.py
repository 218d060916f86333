"""Options that change which result is chosen: each choice is the one that its name says, and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.transforms.params.prune import layer_densities

KEYS = jax.random.split(jax.random.key(0), 4)
LARGE, SMALL = 10 + jnp.abs(jax.random.normal(KEYS[0], (16, 8))), 0.1 * jax.random.normal(KEYS[1], (32, 24))
PARAMS = {"large": {"kernel": LARGE}, "small": {"kernel": SMALL}}


def kept(**options):
    masks = ja.prune(PARAMS, **options)
    return {name: int(masks[name]["kernel"].sum()) for name in PARAMS}


def test_the_scope_says_which_layers_lose():
    assert kept(sparsity=0.5, scope="layer") == {"large": 64, "small": 384}
    assert kept(sparsity=0.5, scope="global") == {"large": 128, "small": 320}
    shares = layer_densities({"large": (16, 8), "small": (32, 24)}, 0.7)
    want = {"large": round(128 * shares["large"]), "small": round(768 * shares["small"])}
    assert kept(sparsity=0.7, scope="erk") == want == {"large": 81, "small": 188}
    assert kept(sparsity={"large/kernel": 0.25, "small/kernel": 0.75}) == {"large": 96, "small": 192}


def test_the_criterion_says_which_weights_go():
    w = jnp.asarray([[4.0, 3.0], [2.0, 1.0]])
    grads, norms = jnp.asarray([[0.0, 1.0], [1.0, 9.0]]), jnp.asarray([1.0, 10.0])

    def masks(criterion, **more):
        return (
            np.asarray(ja.prune({"kernel": w}, 0.5, criterion=criterion, **more)["kernel"]).ravel().tolist()
        )

    assert masks("magnitude") == [True, True, False, False]
    assert masks("taylor", grads={"kernel": grads}) == [False, True, False, True]
    assert masks("wanda", norms={"kernel": norms}) == [False, False, True, True]
    draws = {tuple(masks("random", key=jax.random.key(i))) for i in range(8)}
    assert len(draws) > 1 and all(sum(d) == 2 for d in draws)


def test_the_pattern_says_what_stands_together():
    w = jnp.arange(1.0, 65.0).reshape(8, 8)
    rows = np.asarray(ja.prune({"kernel": w}, pattern="2:4")["kernel"])
    np.testing.assert_array_equal(np.flatnonzero(rows[:, 0]), [2, 3, 6, 7])
    blocks = np.asarray(ja.prune({"kernel": w}, 0.5, "block:2x8")["kernel"])
    np.testing.assert_array_equal(np.flatnonzero(blocks[:, 0]), [4, 5, 6, 7])


def test_the_range_says_whether_outliers_are_clipped():
    w = jax.random.normal(KEYS[2], (500, 4)).at[0].set(20.0)
    for symmetric in (True, False):
        absmax, mse = (
            ja.quantize({"kernel": w}, range=r, bits=4, symmetric=symmetric)["kernel"]
            for r in ("absmax", "mse")
        )

        def error(q):
            return np.sum((np.float64(q.materialize()) - np.float64(w)) ** 2, 0)

        assert (error(mse) < 0.95 * error(absmax)).all()
        tries = []
        for share in np.linspace(0.4, 1, 31):
            scale, zero = np.float64(absmax.scale) * share, 0 if symmetric else np.float64(absmax.zero_point)
            q = np.clip(np.round(np.float64(w) / scale) + zero, -7 - (not symmetric), 7)
            tries.append(np.sum(((q - zero) * scale - w) ** 2, 0))
        np.testing.assert_allclose(error(mse), np.min(tries, 0), rtol=1e-3)


def test_channels_say_what_shares_a_scale():
    w = jax.random.normal(KEYS[3], (6, 4)) * jnp.arange(1, 7)[:, None]
    for channels, axes in ((None, 0), (0, 1), (-1, 0), ((), (0, 1)), ((0, 1), ())):
        scale = ja.quantize({"kernel": w}, channels=channels)["kernel"].scale
        np.testing.assert_allclose(scale, np.abs(np.asarray(w)).max(axes, keepdims=True) / 127, rtol=1e-6)
    blocks = ja.quantize({"kernel": w}, block=3)["kernel"].scale
    np.testing.assert_allclose(blocks, np.abs(np.asarray(w)).reshape(2, 3, 4).max(1) / 127, rtol=1e-6)


@pytest.mark.parametrize("form", ["channel", "spatial", "auto"])
def test_the_form_says_how_a_kernel_is_cut(form):
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=(3, 4, 1)), rng.normal(size=(1, 3, 6))
    separable = np.einsum("hir,rwo->hwio", rows, columns)  # of rank 1 in space, of a higher one in channels
    small = ja.low_rank({"kernel": jnp.asarray(separable, jnp.float32)}, rank=1, form=form)["kernel"]
    exact = np.allclose(small.materialize(), separable, atol=1e-5)
    assert exact == (form != "channel") and (small.axes is None) == (form == "channel")


def test_budgets_of_rank_say_which_weights_are_cut():
    rng = np.random.default_rng(1)
    easy = (rng.normal(size=(32, 2)) @ rng.normal(size=(2, 32))).astype(np.float32)
    params = {
        "easy": {"kernel": jnp.asarray(easy)},
        "hard": {"kernel": jnp.asarray(rng.normal(size=(32, 32)), jnp.float32)},
    }
    by_energy = ja.low_rank(params, energy=0.999)
    assert by_energy["easy"]["kernel"].rank == 2 and isinstance(by_energy["hard"]["kernel"], jax.Array)
    by_rank = ja.low_rank(params, rank={"hard/kernel": 3})
    assert by_rank["hard"]["kernel"].rank == 3 and isinstance(by_rank["easy"]["kernel"], jax.Array)
    by_work = ja.low_rank(params, flops=0.57)  # what the easy one frees is enough
    assert by_work["easy"]["kernel"].rank == 2 and isinstance(by_work["hard"]["kernel"], jax.Array)


def test_activations_say_what_is_rounded():
    """Weights that 8 bits hold exactly, so that all error is that of the activations."""
    w = jnp.asarray([[127.0, -3.0], [5.0, 127.0]])
    q = ja.quantize({"kernel": w})
    x = jnp.asarray([[0.9, 0.1234], [10.0, 5.4321]])
    f = lambda p, x: x @ p["kernel"]  # noqa: E731

    def rounded(scale):
        return np.clip(np.round(np.float64(x) / scale), -127, 127) * scale @ np.float64(w)

    np.testing.assert_allclose(ja.int8(f, activations="none")(q, x), np.float64(x) @ np.float64(w), rtol=1e-6)
    rows = np.abs(np.float64(x)).max(1, keepdims=True) / 127
    np.testing.assert_allclose(ja.int8(f)(q, x), rounded(rows), rtol=1e-5)
    static = ja.int8(f, calibration=ja.transforms.Calibration({"kernel": np.float32(2.0)}))
    np.testing.assert_allclose(static(q, x), rounded(2 / 127), rtol=1e-5)
