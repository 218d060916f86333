"""What a student learns from a teacher, against formulas by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.transforms.distill import soft_targets
from jaxaccel.transforms.features import features


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def net(p, x):
    y = jax.nn.relu(x @ p["a"]["kernel"])
    return jnp.tanh(y @ p["b"]["kernel"]) @ p["head"]["kernel"]


def params(width, seed=0):
    return {"a": {"kernel": random(6, width, seed=seed)}, "b": {"kernel": random(width, width, seed=seed + 1)},
            "head": {"kernel": random(width, 4, seed=seed + 2)}}  # fmt: skip


STUDENT, TEACHER, X = params(5), params(9, 7), random(10, 6, seed=3)


def test_soft_targets_are_the_divergence():
    a, b, t = np.asarray(random(7, 4), np.float64), np.asarray(random(7, 4, seed=1), np.float64), 3.0
    p, q = (np.exp(x / t) / np.exp(x / t).sum(-1, keepdims=True) for x in (b, a))
    np.testing.assert_allclose(
        soft_targets(jnp.asarray(a), jnp.asarray(b), t), t**2 * (p * np.log(p / q)).sum(-1), rtol=1e-4
    )
    assert soft_targets(random(2, 5, 4), random(2, 5, 4, seed=1)).shape == (
        2,
        5,
    )  # one for each position of a sequence


def test_the_gradient_at_high_temperature_is_that_of_matched_logits():
    a, b = random(7, 4), random(7, 4, seed=1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    grad = jax.grad(lambda a: soft_targets(a, b, 1000.0).sum())(a)  # Hinton et al., equation 4
    np.testing.assert_allclose(grad, (a - b) / 4, atol=2e-3)


def test_no_gradient_reaches_the_teacher():
    d = ja.distill(net, net, hints=[ja.transforms.Hint("b/kernel", "b/kernel", "relation")])
    grads = jax.grad(lambda t: d(STUDENT, t, X)[1].sum())(TEACHER)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_features_are_the_products():
    out, seen = jax.jit(features(net, ["a/kernel", "b/kernel"]))(STUDENT, X)
    np.testing.assert_allclose(out, net(STUDENT, X), rtol=1e-5)
    np.testing.assert_allclose(seen["a/kernel"], X @ STUDENT["a"]["kernel"], rtol=1e-5)
    assert seen["b/kernel"].shape == (10, 5)


def test_hints_train_their_projections_and_the_student():
    d = ja.distill(net, net, soft=0.0, hints=[ja.transforms.Hint("b/kernel", "b/kernel")])
    both = {"student": STUDENT, "projections": d.init(jax.random.key(0), STUDENT, TEACHER, X)}
    assert both["projections"]["b/kernel"].shape == (5, 9)

    def loss(both):
        return d(both["student"], TEACHER, X, projections=both["projections"])[1].mean()

    by_hand = (
        jnp.maximum(X @ STUDENT["a"]["kernel"], 0) @ STUDENT["b"]["kernel"] @ both["projections"]["b/kernel"]
    )
    target = jnp.maximum(X @ TEACHER["a"]["kernel"], 0) @ TEACHER["b"]["kernel"]
    np.testing.assert_allclose(loss(both), jnp.mean((by_hand - target) ** 2) / jnp.mean(target**2), rtol=1e-4)
    before = loss(both)
    for _ in range(30):
        both = jax.tree.map(lambda p, g: p - 0.1 * g, both, jax.grad(loss)(both))
    assert loss(both) < 0.7 * before
    assert not np.allclose(both["student"]["a"]["kernel"], STUDENT["a"]["kernel"])


@pytest.mark.slow
def test_equal_networks_have_nothing_to_learn():
    kinds = [ja.transforms.Hint("a/kernel", "a/kernel", kind) for kind in ("attention", "relation")]
    _, term = ja.distill(net, net, hints=kinds)(STUDENT, STUDENT, X)
    np.testing.assert_allclose(term, np.zeros(10), atol=1e-5)
    grads = jax.grad(lambda p: ja.distill(net, net, hints=kinds)(p, STUDENT, X)[1].sum())(STUDENT)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_attention_looks_at_places_and_not_at_channels():
    def conv(p, x):
        y = jax.lax.conv_general_dilated(
            x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.mean((1, 2)) @ p["b"]

    small, large = ({"a": random(3, 3, 2, n, seed=n), "b": random(n, 4)} for n in (3, 8))
    d = ja.distill(conv, conv, soft=0.0, hints=[ja.transforms.Hint("a", "a", "attention")])
    x = random(2, 5, 5, 2)
    _, term = d(small, large, x)

    def attention(p):
        y = jax.lax.conv_general_dilated(
            x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        flat = np.asarray((y**2).mean(-1)).reshape(2, -1)
        return flat / np.linalg.norm(flat, axis=-1, keepdims=True)

    np.testing.assert_allclose(term, ((attention(small) - attention(large)) ** 2).sum(-1), rtol=1e-4)


def test_the_teacher_may_be_any_function():
    q = ja.quantize(TEACHER)
    ensemble = lambda both, x: (net(both[0], x) + net(both[1], x)) / 2  # noqa: E731
    stored = np.asarray(net(TEACHER, X))
    for teacher, weights in (
        (ja.int8(net), q), (ja.bfloat16(net), TEACHER), (ensemble, (TEACHER, TEACHER)), (lambda t, x: t, stored),
    ):  # fmt: skip
        _, term = jax.jit(lambda p, w, teacher=teacher: ja.distill(net, teacher)(p, w, X))(STUDENT, weights)
        exact = ja.distill(net, net)(STUDENT, TEACHER, X)[1]
        np.testing.assert_allclose(term, exact, rtol=0.2, atol=0.2 * float(exact.mean()))


def hinted(student, teacher):
    return ja.distill(net, net, hints=[ja.transforms.Hint(student, teacher)])(STUDENT, TEACHER, X)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ja.distill(net, net, temperature=0.0), "temperature > 0"),
        (lambda: ja.distill(net, net, soft=0.0), "nothing to learn from"),
        (
            lambda: ja.distill(net, net, hints=[ja.transforms.Hint("a", "b", "taste")]),
            "kind must be hint, attention or relation",
        ),
        (lambda: hinted("a/kernle", "a/kernel"), "no product with a/kernle"),
        (lambda: hinted("b/kernel", "b/kernel"), "need projections"),
        (lambda: ja.distill(net, lambda t, x: x)(STUDENT, TEACHER, X), "the same classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(call, says):
    with pytest.raises(UserError, match=says):
        call()
