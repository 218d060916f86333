"""What a student learns from a teacher: soft targets, features and relations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxaccel.core.options import NonNegative, Options, checked
from jaxaccel.errors import UserError
from jaxaccel.transforms.features import features

PyTree = Any
Kind = Literal["hint", "attention", "relation"]


@dataclasses.dataclass(frozen=True)
class Hint(Options):
    """Features of the student that are to be like features of the teacher; each named by the weight that makes them."""

    student: str
    """Path of the weight whose product is the feature: ``stages/2/2/conv2/kernel``."""
    teacher: str
    """Path of that weight in the teacher."""
    kind: Kind = "hint"
    """``hint``: equal after a learned projection of the student's channels (Romero et al. 2015, arXiv:1412.6550).
    ``attention``: equal maps of where activations are strong (Zagoruyko & Komodakis 2017, arXiv:1612.03928).
    ``relation``: equal distances between the examples of a batch (Park et al. 2019, arXiv:1904.05068)."""
    weight: NonNegative | jax.Array = 1.0
    """Weight of this term in the sum."""


def soft_targets(student: jax.Array, teacher: jax.Array, temperature: float | jax.Array = 4.0) -> jax.Array:
    """Kullback-Leibler divergence of softened distributions, times the square of the temperature, for each example.

    Hinton, Vinyals & Dean 2015 (arXiv:1503.02531); the square keeps gradients as large whatever the temperature.

    Args:
      student: logits (..., classes).
      teacher: logits of the same shape; no gradient flows into them.
      temperature: divides both.

    Returns:
      (...) float32: for sequences one number each position.
    """
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    # A class that the teacher excludes, with a logit of -inf, adds nothing.
    return temperature**2 * jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p - log_q, 0), -1)


@checked
def distill(
    student: Callable[..., Any],
    teacher: Callable[..., Any],
    *,
    temperature: float = 4.0,
    soft: float = 1.0,
    hints: Sequence[Hint] = (),
    has_aux: bool = False,
) -> "Distillation":
    """What the student's loss gets from a teacher.

    The teacher is any function: of int8 or bfloat16 products, an ensemble, a look-up of logits that were computed
    before. It runs in the same program as the student, and no gradient flows into it.

        d = ja.distill(student, teacher)
        def loss(params, batch):
            logits, term = d(params, teacher_params, batch["image"])
            return 0.1 * cross_entropy(logits, batch["label"]) + 0.9 * term.mean()

    Args:
      student: called as ``student(params, *inputs)``; gives logits (B, ..., classes).
      teacher: called as ``teacher(teacher_params, *inputs)``; gives logits of the same shape.
      temperature: of the soft targets.
      soft: weight of the soft targets in the sum; 0 leaves them out.
      hints: features to learn from besides.
      has_aux: the student gives (logits, anything), a new state for instance, and so does what is returned.

    Raises:
      UserError: a number is out of range, or there is nothing to learn from.
    """
    if not temperature > 0 or soft < 0:
        raise UserError(f"distill needs temperature > 0 and soft >= 0, got {temperature:g} and {soft:g}")
    if not soft and not hints:
        raise UserError("distill has nothing to learn from: give soft > 0 or hints")
    return Distillation(student, teacher, temperature, soft, tuple(hints), has_aux)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """``d(params, teacher_params, *inputs, projections=...) -> (student's logits, (B, ...) loss)``; see `distill`."""

    student: Callable[..., Any]
    teacher: Callable[..., Any]
    temperature: float | jax.Array
    soft: float | jax.Array
    hints: tuple[Hint, ...]
    has_aux: bool = False

    def init(
        self, key: jax.Array, params: PyTree, teacher_params: PyTree, *inputs: Any
    ) -> dict[str, jax.Array]:
        """Projections (student's channels, teacher's channels) of the hints that need one, to be trained with the
        student.

        Args:
          key: random key.
          params, teacher_params, inputs: as at a call; arrays or shapes.
        """
        both = jax.eval_shape(lambda p, t, *x: self._features(p, t, *x)[2:], params, teacher_params, *inputs)
        found = {}
        for i, hint in enumerate(self.hints):
            if hint.kind == "hint":
                a, b = both[0][hint.student].shape[-1], both[1][hint.teacher].shape[-1]
                found[hint.student] = (
                    jax.random.normal(jax.random.fold_in(key, i), (a, b), jnp.float32) / a**0.5
                )
        return found

    def __call__(
        self,
        params: PyTree,
        teacher_params: PyTree,
        *inputs: Any,
        projections: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Any, jax.Array]:
        """The student's logits, and what it should lower besides its own loss: (B, ...) float32."""
        out, targets, ours, theirs = self._features(params, teacher_params, *inputs)
        logits = out[0] if self.has_aux else out
        total = jnp.zeros(logits.shape[:-1], jnp.float32)
        if isinstance(self.soft, jax.Array) or self.soft:  # of several replicas some may have none
            if logits.shape != targets.shape:
                raise UserError(
                    f"the student gives logits of shape {logits.shape} and the teacher {targets.shape}: distillation "
                    "by soft targets needs the same classes; soft=0 learns from hints alone"
                )
            total += self.soft * soft_targets(logits, targets, self.temperature)
        for hint in self.hints:
            a, b = ours[hint.student], jax.lax.stop_gradient(theirs[hint.teacher])
            if hint.kind == "hint":
                if projections is None or hint.student not in projections:
                    raise UserError(
                        "hints need projections: make them with .init(key, ...) and train them too"
                    )
                a = a @ projections[hint.student].astype(a.dtype)
            term = _TERMS[hint.kind](a.astype(jnp.float32), b.astype(jnp.float32))
            total += hint.weight * term.reshape(-1, *[1] * (total.ndim - 1))
        return out, total

    def _features(self, params: PyTree, teacher_params: PyTree, *inputs: Any) -> tuple[Any, Any, Any, Any]:
        ours = features(self.student, [h.student for h in self.hints]) if self.hints else _alone(self.student)
        theirs = (
            features(self.teacher, [h.teacher for h in self.hints]) if self.hints else _alone(self.teacher)
        )
        out, a = ours(params, *inputs)
        targets, b = theirs(jax.lax.stop_gradient(teacher_params), *inputs)
        return out, targets, a, b


def _alone(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (f(*args), {})


def _hint(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared difference of each example, relative to the teacher's mean square where that is not 0."""
    _check_same(a.shape, b.shape, "hint")
    axes, size = tuple(range(1, a.ndim)), _positive(jnp.sqrt(jnp.mean((b / _largest(b)) ** 2)) * _largest(b))
    return jnp.mean(((a - b) / size) ** 2, axes)


def _attention(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared difference of the normalized maps of mean squares over channels, for each example."""
    _check_same(a.shape[:-1], b.shape[:-1], "attention")

    def normalized(x: jax.Array) -> jax.Array:
        x = jnp.mean((x / _largest(x, tuple(range(1, x.ndim)))) ** 2, -1).reshape(x.shape[0], -1)
        return x / _positive(_root(jnp.sum(x**2, -1, keepdims=True)))

    return jnp.sum((normalized(a) - normalized(b)) ** 2, -1)


def _relation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Huber's loss of the distances to all other examples, each in units of their mean."""

    def distances(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        x = x / _largest(x - x[:1])
        d = _root(jnp.sum((x[:, None] - x[None]) ** 2, -1))
        return d / _positive(jnp.sum(d) / max(len(x) * (len(x) - 1), 1))

    gap = jnp.abs(distances(a) - distances(b))
    return jnp.mean(jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5), -1)


def _root(squares: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0, where it has none: equal examples do not pull at each other."""
    return jnp.where(squares > 0, jnp.sqrt(_positive(squares)), 0)


def _positive(x: jax.Array) -> jax.Array:
    """`x`, and 1 where it is 0: what it divides is 0 there, or has no other size to go by."""
    return jnp.where(x > 0, x, 1)


def _largest(x: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """The largest magnitude over `axes`, a constant for derivatives: in units of it no square vanishes or overflows."""
    axes = tuple(range(x.ndim)) if axes is None else tuple(axes)
    return jax.lax.stop_gradient(_positive(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)))


def _check_same(a: tuple[int, ...], b: tuple[int, ...], kind: str) -> None:
    if a != b:
        raise UserError(f"features of kind {kind} must have one shape, got {a} and {b}: name others")


_TERMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "hint": _hint, "attention": _attention, "relation": _relation,
}  # fmt: skip
