"""From a recipe's few numbers to an Optax gradient transformation."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.options import Count, CountOrZero, NonNegative, Options, Share, ShareBelowOne
from jaxaccel.core.paths import path_text
from jaxaccel.errors import UserError, option
from jaxaccel.optim.averaging import Averaging
from jaxaccel.optim.conjugate_gradient import conjugate_gradient
from jaxaccel.optim.float32_updates import in_float32
from jaxaccel.optim.freeze import freeze, unfreeze_gradually
from jaxaccel.optim.lookahead import lookahead
from jaxaccel.optim.muon import muon
from jaxaccel.optim.scaling import layer_decay, scale_by_path
from jaxaccel.optim.shampoo import shampoo
from jaxaccel.optim.sharpness import sharpness_aware
from jaxaccel.optim.soap import soap
from jaxaccel.transforms.params.select import selects_parameter

OURS = {"shampoo": shampoo, "soap": soap, "conjugate_gradient": conjugate_gradient, "muon": muon}
"""What Optax lacks, and `muon` for kernels of any rank."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"prodigy": {"safeguard_warmup": True}}
"""Arguments other than Optax's: without its safeguard Prodigy divides 0 by 0 where a warm-up begins."""
LINE_SEARCH = ("lbfgs", "conjugate_gradient")
UNSCHEDULED = ("rprop", "sm3", "optimistic_adam")
"""Of Optax, but with a learning rate that has to be a number."""


@dataclasses.dataclass(frozen=True)
class Optimizer(Options):
    """An optimizer by its name in Optax, or one of ours that Optax lacks, and what stands around it."""

    name: str = "adamw"
    """Name of the optimizer: sgd, adamw, lars, lamb, lion, muon, sophia, prodigy, schedule_free_adamw,
    shampoo, soap, or any other of Optax and its contrib. lbfgs and conjugate_gradient search along a line for
    each step and use no learning rate."""
    learning_rate: NonNegative = 1e-3
    """Learning rate at the peak of the schedule."""
    args: Mapping[str, float | bool] = dataclasses.field(default_factory=dict)
    """Pass these further arguments to that optimizer: `--optimizer.args momentum 0.9 nesterov 1`."""
    weight_decay: NonNegative = 0.0
    """Strength of weight decay; decoupled where the optimizer has it (adamw, lion, ...), else added to the
    gradient (L2, as for sgd)."""
    decay_where: str = "**/{kernel,embedding}"
    """Decay the parameters whose paths match this pattern; optimizers that cannot tell them apart (prodigy,
    schedule_free_adamw) decay all."""
    rates: Mapping[str, NonNegative] = dataclasses.field(default_factory=dict)
    """Multiply the learning rate of groups of parameters, by path: `--optimizer.rates '**/head/**' 10`; 0
    freezes a group."""
    freeze: tuple[str, ...] = ()
    """Keep parameters as they are, by path ('stem/**' 'stages/0/**'): they get no gradient and no state, and
    are not pruned."""
    unfreeze: Mapping[str, Share] = dataclasses.field(default_factory=dict)
    """Start to train groups of parameters, by path, only after a share of the run (Howard & Ruder 2018):
    `--optimizer.unfreeze 'stages/**' 0.2 'stem/**' 0.5`."""
    layer_decay: NonNegative = 1.0
    """Give each layer this share of the learning rate of the layer above it, for fine-tuning (Bao et al.
    2021)."""
    clip_norm: NonNegative = 0.0
    """Clip the global norm of the gradient to this; 0 does not clip."""
    accumulate: Count = 1
    """Split each batch into this many parts and average their gradients: less memory; BatchNorm sees the parts."""
    sam: NonNegative = 0.0
    """Radius of sharpness-aware minimization (Foret et al. 2021): two gradients a step; 0.05 is usual, 0 is off."""
    asam: NonNegative = 0.0
    """Radius in proportion to each weight's size instead (Kwon et al. 2021): 0.5 is usual, 0 is off."""
    lookahead: CountOrZero = 0
    """Number of steps after which slow weights go half of the way to the fast ones, which start again there;
    evaluation uses the slow ones, unless `ema` or `swa` averages the fast ones; 0 is off."""
    ema: ShareBelowOne = 0.0
    """Decay of the exponential moving average of the weights that evaluation then uses; 0 keeps none."""
    swa: ShareBelowOne = 0.0
    """Share of the run after which the weights at the end of each epoch are averaged, all with equal weight, for
    evaluation (Izmailov et al. 2018); 0 keeps no such average."""
    reestimate: CountOrZero = 0
    """Number of training batches from which the BatchNorm statistics of averaged weights are computed before
    each evaluation."""

    def check_values(self) -> None:
        """Checks what excludes each other."""
        if self.ema and self.swa:
            raise UserError(f"choose one average of the weights, {option('ema')} or {option('swa')}")
        if self.sam and self.asam:
            raise UserError(f"choose one of {option('sam')} and {option('asam')}")
        if "weight_decay" in self.args:
            raise UserError(
                f"weight decay is an option of its own: {option('weight_decay')}, not {option('args')}"
            )
        if self.name in LINE_SEARCH:
            taken = ("weight_decay", "clip_norm", "rates", "layer_decay", "sam", "asam")
            self._refuse(taken, "searches along the loss alone")
        if self.name.startswith("schedule_free"):
            taken = ("rates", "layer_decay", "unfreeze", "lookahead", "ema", "swa")
            self._refuse(taken, "averages weights in its own way")
        elif self.reestimate and not (self.ema or self.swa or self.lookahead):
            raise UserError(
                f"{option('reestimate')} is for averaged weights: add {option('ema')}, {option('swa')} or "
                f"{option('lookahead')}"
            )

    def _refuse(self, names: Sequence[str], why: str) -> None:
        for name in names:
            if self.layer_decay != 1 if name == "layer_decay" else getattr(self, name):
                raise UserError(f"{self.name} {why}: leave out {option(name)}")

    def build(
        self,
        schedule: optax.Schedule,
        steps: int = 0,
        around: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
        seed: int | jax.Array = 0,
    ) -> optax.GradientTransformationExtraArgs:
        """The gradient transformation, driven by `schedule`.

        Args:
          schedule: step -> learning rate.
          steps: of the run, in shares of which `unfreeze` counts.
          around: what stands around the optimizer, such as `sparse`; it sees nothing of what `freeze` holds.
          seed: of the random numbers that an optimizer draws (sophia, noisy_sgd).

        Raises:
          UserError: there is no such optimizer, or it does not take one of `args`.
        """
        factory = _factory(self.name)
        parameters = inspect.signature(factory).parameters
        for name in self.args:
            if name not in parameters:
                raise UserError(
                    f"optimizer {self.name} takes no {name!r}{suggest_nearest(name, list(parameters))}"
                )
        own = {name: _as_declared(parameters[name], value) for name, value in self.args.items()}
        options: dict[str, Any] = {**DEFAULTS.get(self.name, {}), **own}
        if "hessian_diagonal_fn" in parameters:
            # A raw key, as theirs: it is part of the state, and of checkpoints.
            probes = optax.contrib.hutchinson_estimator_diag_hessian(jax.random.PRNGKey(seed))
            options["hessian_diagonal_fn"] = probes
        if self.name == "noisy_sgd":
            options["key"] = jax.random.key(seed)
        before: list[optax.GradientTransformation] = []
        if is_on(self.clip_norm):
            # Of several replicas some may not clip.
            norm = jnp.where(jnp.asarray(self.clip_norm) > 0, self.clip_norm, jnp.inf)
            before.append(optax.clip_by_global_norm(norm))
        if "weight_decay" in parameters:
            options["weight_decay"] = self.weight_decay
            # Optax names the mask differently from optimizer to optimizer.
            for mask in ("mask", "weight_decay_mask"):
                if mask in parameters:
                    options[mask] = self._decays
        elif is_on(self.weight_decay):
            before.append(optax.add_decayed_weights(self.weight_decay, mask=self._decays))
        try:
            made = factory(learning_rate=None if self.name in LINE_SEARCH else schedule, **options)
        except (
            UserError,
            jax.errors.ConcretizationTypeError,
        ):  # the latter: a number that differs between replicas
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer {self.name}({', '.join(options)}): {error}") from error
        tx = optax.chain(*before, _only_what_it_takes(made) if self.name in LINE_SEARCH else made)
        tx = self._around(tx, steps)
        tx = around(tx) if around else tx
        return in_float32(freeze(tx, self.freeze) if self.freeze else tx)

    def averaging(self, ends: Sequence[int]) -> Averaging | None:
        """The average of the weights in a run whose epochs end at these steps; None where there is none.

        Raises:
          UserError: `swa` leaves fewer than two of them.
        """
        if is_on(self.ema):
            return Averaging(decay=self.ema)
        if not self.swa:
            return None
        samples = tuple(end for end in ends if end >= round(self.swa * ends[-1]))
        if len(samples) < 2:
            raise UserError(
                f"swa averages the weights at the ends of epochs, and after {self.swa:.0%} of this run there is only "
                f"one: train longer, or lower {option('optimizer.swa')}"
            )
        return Averaging(at=samples)

    def _around(self, tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformationExtraArgs:
        behind = [scale_by_path(self.rates)] if self.rates else []
        behind += [layer_decay(self.layer_decay)] if self.layer_decay != 1 else []
        tx = optax.chain(tx, *behind) if behind else tx
        if self.sam or self.asam:
            tx = sharpness_aware(tx, self.sam or self.asam, adaptive=bool(self.asam))
        if self.unfreeze:
            tx = unfreeze_gradually(tx, self.unfreeze, steps)
        if self.lookahead:
            tx = lookahead(tx, self.lookahead)
        return optax.with_extra_args_support(tx)

    def _decays(self, params: Any) -> Any:
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: selects_parameter(self.decay_where, path_text(path)), params
        )
        if is_on(self.weight_decay) and not any(jax.tree.leaves(found)):
            raise UserError(f"{option('optimizer.decay_where')} {self.decay_where!r} matches no parameter")
        return found


def is_on(value: float | jax.Array) -> bool:
    """Whether a number, above 0, switches something on; one that differs between replicas (an array) does."""
    return isinstance(value, jax.Array) or value > 0


def _factory(name: str) -> Any:
    if name in UNSCHEDULED:
        raise UserError(f"{name} cannot follow a schedule of the learning rate: choose another optimizer")
    for place in (OURS, vars(optax), vars(optax.contrib)):
        factory = place.get(name)
        if callable(factory) and "learning_rate" in inspect.signature(factory).parameters:
            return factory
    raise UserError(f"there is no optimizer {name!r}{suggest_nearest(name, _names())}")


def _names() -> list[str]:
    # The aliases are what Optax calls its ready-made optimizers.
    return [n for n in [*OURS, *dir(optax.contrib), *dir(optax)] if n.islower() and not n.startswith("_")]


def _only_what_it_takes(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Line searches pass all that they do not know on to the loss, which would take nothing of it."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return tx.update(
            updates, state, params, **{name: extra[name] for name in ("value", "grad", "value_fn")}
        )

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _as_declared(parameter: inspect.Parameter, value: float) -> Any:
    """A command line gives numbers only: 1 is True where the default is a flag, 5 an int where it is one."""
    kind = type(parameter.default)
    return kind(value) if kind in (bool, int) and value == int(value) else value
