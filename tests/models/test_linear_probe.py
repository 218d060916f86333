"""A linear probe, against the optimum that it should find."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxaccel as ja
from jaxaccel.models.linear_probe import linear_probe


def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 5)) * [1, 10, 0.1, 3, 1] + np.eye(3)[labels] @ rng.normal(size=(3, 5)) + 4
    return x.astype(np.float32), labels


@pytest.mark.slow
def test_no_other_classifier_is_better():
    x, labels = data()
    found = linear_probe(x, labels, 3, l2=1e-2)
    mean, deviation = x.mean(0), x.std(0) + 1e-6

    def loss(p):  # in the terms in which it was fitted
        kernel = p["kernel"] * deviation[:, None]
        errors = optax.softmax_cross_entropy_with_integer_labels(x @ p["kernel"] + p["bias"], labels)
        return errors.mean() + 1e-2 * jnp.mean(kernel**2)

    best = float(loss(found))

    def of_fit(q):
        kernel = q["kernel"] / deviation[:, None]
        return loss({"kernel": kernel, "bias": q["bias"] - mean @ kernel})

    slope = jax.grad(of_fit)(
        {"kernel": found["kernel"] * deviation[:, None], "bias": found["bias"] + mean @ found["kernel"]}
    )
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(slope)) < 1e-3
    assert best < float(loss({"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)}))
    accuracy = float(((x @ found["kernel"] + found["bias"]).argmax(-1) == labels).mean())
    assert accuracy > 0.5


def test_features_of_a_network_are_the_inputs_of_its_head():
    f = lambda p, x: jnp.tanh(x @ p["body"]["kernel"]) @ p["head"]["kernel"]  # noqa: E731
    p = {"body": {"kernel": jnp.ones((5, 4)) / 9}, "head": {"kernel": jnp.ones((4, 3))}}
    x, _ = data()
    _, seen = ja.transforms.features(f, ["head/kernel"], of="input")(p, x)
    np.testing.assert_allclose(seen["head/kernel"], np.tanh(x @ np.ones((5, 4)) / 9), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_said():
    x, labels = data()
    with pytest.raises(ja.UserError, match=r"features \(N, D\) and labels \(N,\)"):
        linear_probe(x, labels[:5], 3)
    with pytest.raises(ja.UserError, match=r"must lie in \[0, 2\), got 0 to 2"):
        linear_probe(x, labels, 2)
