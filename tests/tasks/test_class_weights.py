"""Class weights of the training loss, against NumPy: with smoothing, mixed labels, masks and parts to accumulate."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxaccel import augment
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.tasks import ImageClassification
from jaxaccel.tasks.classification import balance_class_weights
from jaxaccel.training.step import Training

B, CLASSES = 8, 3
WEIGHTS = (0.5, 2.0, 3.0)


def batch(mixed=False, mask=True):
    rng = np.random.default_rng(0)
    found = {
        "image": rng.integers(0, 256, (B, 2, 2, 1), dtype=np.uint8),
        "label": np.array([0, 1, 2, 0, 0, 1, 2, 0], np.int32),
        "mask": np.array([1, 1, 1, 1, 1, 1, 0, 0] if mask else [1] * B, np.float32),
        "index": np.arange(B, dtype=np.int32),
    }
    if mixed:
        found |= {"mix_label": found["label"][::-1].copy(), "mix_weight": rng.random(B, np.float32)}
    return found


def reference(logits, b, smoothing):
    """(loss, its gradient by the logits) in float64."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    loss, grad = 0.0, np.zeros_like(logits)
    for i in range(len(logits)):
        mix = float(b.get("mix_weight", np.zeros(len(logits)))[i])
        parts = [(1 - mix, b["label"][i])] + ([(mix, b["mix_label"][i])] if mix else [])
        for share, label in parts:
            target = np.full(CLASSES, smoothing / CLASSES)
            target[label] += 1 - smoothing
            weight = b["mask"][i] * share * WEIGHTS[label] / b["mask"].sum()
            loss -= weight * (target * np.log(p[i])).sum()
            grad[i] += weight * (p[i] - target)
    return loss, grad


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_and_gradient_are_those_of_numpy(smoothing, mixed):
    task = ImageClassification(label_smoothing=smoothing, class_weights=WEIGHTS)
    logits, b = jax.random.normal(jax.random.key(0), (B, CLASSES)), batch(mixed)
    loss, grad = jax.value_and_grad(lambda x: task.loss(x, b)[0])(logits)
    expected, gradient = reference(logits, b, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, gradient, atol=1e-6)
    reported = task.loss(logits, b)[1]
    np.testing.assert_allclose(reported["loss"].value(), expected, rtol=1e-5)
    assert float(reported["accuracy"].count) == 6, "accuracy is not weighted"


def test_evaluation_is_not_weighted():
    logits = jax.random.normal(jax.random.key(0), (B, CLASSES))
    plain, weighted = (
        ImageClassification(class_weights=w).evaluate(lambda x: logits, batch()) for w in ((), WEIGHTS)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, weighted)


class Mlp(nnx.Module):
    def __init__(self, *, classes, rngs):
        self.head = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(x.shape[0], -1))


def test_parts_to_accumulate_give_the_same_step():
    task = ImageClassification(class_weights=WEIGHTS)
    b = batch(mask=False)
    model = as_model(Mlp, {"classes": CLASSES}, jax.eval_shape(lambda: task.inputs(b)))
    schedule = optax.constant_schedule(0.5)
    whole = Training(model, task, optax.sgd(schedule), schedule, augment.chain())
    parts = dataclasses.replace(whole, accumulate=4)
    (one, metrics), (other, found) = (t.step(t.init(), b) for t in (whole, parts))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.params, other.params)
    np.testing.assert_allclose(metrics.means["loss"].value(), found.means["loss"].value(), rtol=1e-5)


class Source(list):
    def __init__(self, labels):
        super().__init__({"label": np.int64(label)} for label in labels)
        image = types.SimpleNamespace(shape=(2, 2, 1))
        names = ("a", "b", "c")
        self.features = {"image": image, "label": types.SimpleNamespace(num_classes=3, names=names)}

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def test_balanced_weights_count_the_training_labels():
    labels = [0] * 600 + [1] * 300 + [2] * 100
    task = ImageClassification(class_weights="balanced")
    fitted = task.fit(Source(np.random.default_rng(0).permutation(labels)))
    assert fitted.class_weights == pytest.approx((1000 / 1800, 1000 / 900, 1000 / 300))
    assert np.asarray(fitted.class_weights)[labels].mean() == pytest.approx(1)
    assert balance_class_weights(np.array([0, 0, 0, 1]), 3) == pytest.approx((4 / 9, 4 / 3, 0))
    assert fitted.fit(None) is fitted and ImageClassification().fit(None) == ImageClassification()
    with pytest.raises(UserError, match=r"task.fit\(source\) counts them"):
        task.loss(jnp.zeros((B, CLASSES)), batch())


def test_mistakes():
    for weights in ((1.0, -1.0), (1.0, float("nan")), (float("inf"),), (0.0, 0.0), "balance"):
        with pytest.raises(UserError, match="class_weights"):
            ImageClassification(class_weights=weights)
    with pytest.raises(UserError, match=r"class_weights has 2 numbers and the data 3 classes"):
        ImageClassification(class_weights=(1.0, 2.0)).facts(Source([]).features)
