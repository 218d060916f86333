"""A linear classifier on cached features: what a frozen network already knows of a task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxaccel.core.options import checked
from jaxaccel.errors import UserError


@checked
def linear_probe(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    classes: int,
    *,
    l2: float = 1e-3,
    steps: int = 200,
) -> dict[str, jax.Array]:
    """A softmax classifier's kernel (D, classes) and bias (classes,), fitted to all features at once.

    Features are standardized for fitting, by L-BFGS (`optax.lbfgs`) from zeros, and that is folded into the result:
    it takes features as they are, and fits the head that they were made for.

    Args:
      features: (N, D) float, computed once: ``ja.transforms.features(f, ["head/kernel"], of="input")``.
      labels: (N,) integers in [0, classes).
      classes: how many there are.
      l2: weight of the mean square of the standardized kernel.
      steps: of L-BFGS at most; it ends when the gradient's norm is below 1e-4.

    Raises:
      UserError: shapes or labels do not fit.
    """
    features, labels = jnp.asarray(features, jnp.float32), jnp.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise UserError(
            f"a probe takes features (N, D) and labels (N,), got {features.shape} and {labels.shape}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(f"labels must lie in [0, {classes}), got {int(labels.min())} to {int(labels.max())}")
    mean, deviation = features.mean(0), features.std(0) + 1e-6

    @jax.jit
    def fit(features: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        x = (features - mean) / deviation

        def loss(p: dict[str, jax.Array]) -> jax.Array:
            logits = x @ p["kernel"] + p["bias"]
            errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return errors.mean() + l2 * jnp.mean(p["kernel"] ** 2)

        tx = optax.lbfgs()
        start = {"kernel": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}

        def step(carry: tuple) -> tuple:
            count, p, state, _ = carry
            value, grads = optax.value_and_grad_from_state(loss)(p, state=state)
            updates, state = tx.update(grads, state, p, value=value, grad=grads, value_fn=loss)
            return count + 1, optax.apply_updates(p, updates), state, optax.tree.norm(grads)

        carry = (0, start, tx.init(start), jnp.inf)
        return jax.lax.while_loop(lambda c: (c[0] < steps) & (c[3] > 1e-4), step, carry)[1]

    found = fit(features, labels)
    kernel = found["kernel"] / deviation[:, None]
    return {"kernel": kernel, "bias": found["bias"] - mean @ kernel}
