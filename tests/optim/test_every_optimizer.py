"""What holds of all: the loss falls, and ours work under jit, vmap and eval_shape, donated, in bfloat16, on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxaccel.distributed.mesh import AXES
from jaxaccel.distributed.sharding import state_sharding
from jaxaccel.optim.conjugate_gradient import conjugate_gradient, scale_by_conjugate_gradient
from jaxaccel.optim.lookahead import lookahead
from jaxaccel.optim.scaling import layer_decay, scale_by_path
from jaxaccel.optim.shampoo import shampoo
from jaxaccel.optim.sharpness import sharpness_aware
from jaxaccel.optim.soap import soap

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

_rng = np.random.default_rng(0)
X = jnp.float32(_rng.normal(size=(64, 6)))
Y = jnp.tanh(X @ jnp.float32(_rng.normal(size=(6, 3))))
PARAMS = {
    "blocks": [{"kernel": jnp.float32(_rng.normal(size=(6, 16)) / 2), "bias": jnp.zeros(16)}],
    "head": {"kernel": jnp.float32(_rng.normal(size=(16, 3)) / 4), "bias": jnp.zeros(3)},
}


def loss(params, x=X, y=Y):
    block, head = params["blocks"][0], params["head"]
    hidden = jnp.tanh(x @ block["kernel"] + block["bias"])
    return jnp.square(hidden @ head["kernel"] + head["bias"] - y).mean()


OPTIMIZERS = {
    "sgd": optax.sgd(0.3, momentum=0.9),
    "adamw": optax.adamw(0.02),
    "lars": optax.lars(0.3, trust_coefficient=0.1),
    "lamb": optax.lamb(0.05),
    "muon": optax.contrib.muon(0.05),
    "lion": optax.lion(0.01),
    "prodigy": optax.contrib.prodigy(),
    "schedule_free_adamw": optax.contrib.schedule_free_adamw(0.05),
    "sophia": optax.contrib.sophia(0.02),
    "lbfgs": optax.lbfgs(),
    "shampoo": shampoo(0.02),
    "soap": soap(0.02),
    "conjugate_gradient": conjugate_gradient(),
    "sharpness_aware": sharpness_aware(optax.adam(0.02)),
    "asam": sharpness_aware(optax.adam(0.02), rho=0.5, adaptive=True),
    "lookahead": lookahead(optax.adam(0.03)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_falls(name):
    tx = optax.with_extra_args_support(OPTIMIZERS[name])
    extra = {
        "sophia": {"obj_fn": loss},
        "lbfgs": {"value_fn": loss},
        "conjugate_gradient": {"value_fn": loss},
        "sharpness_aware": {"grad_fn": jax.grad(loss)},
        "asam": {"grad_fn": jax.grad(loss)},
    }.get(name, {})

    @jit
    def run(params):
        def body(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            search = {"value": value, "grad": grad} if "value_fn" in extra else {}
            updates, state = tx.update(grad, state, params, **extra, **search)
            return (optax.apply_updates(params, updates), state), value

        (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=30)
        return loss(params)

    assert float(run(PARAMS)) < 0.5 * float(loss(PARAMS))


OURS = {
    "shampoo": shampoo(0.02, update_every=2, weight_decay=0.1),
    "soap": soap(0.02, update_every=2, max_size=8, weight_decay=0.1),
    "conjugate_gradient": optax.chain(scale_by_conjugate_gradient(), optax.scale(-0.1)),
    "lookahead": lookahead(optax.adam(0.02), period=2),
    "sharpness_aware": sharpness_aware(optax.adam(0.02)),
    "scaling": optax.chain(optax.adam(0.02), scale_by_path({"head/**": 2.0}), layer_decay(0.5)),
}


def stepped(tx):
    tx = optax.with_extra_args_support(tx)

    def step(params, state):
        extra = {"grad_fn": jax.grad(loss)}  # those that want none are given none
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("name", OURS)
def test_stacked_replicas_go_as_each_alone(name):
    # In float64: roots of nearly singular statistics amplify the rounding of float32, which differs between CPUs.
    with jax.enable_x64(True):
        tx = OURS[name]
        replicas = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p + 0.1]).astype(jnp.float64), PARAMS)
        step = jit(stepped(tx), donate_argnums=(0, 1))
        state = jit(jax.vmap(tx.init))(replicas)
        together = jit(jax.vmap(stepped(tx)), donate_argnums=(0, 1))
        both = jax.tree.map(jnp.copy, replicas)
        for _ in range(3):
            both, state = together(both, state)
        for i in range(2):
            params = jax.tree.map(lambda p, i=i: p[i], replicas)
            state = jit(tx.init)(params)
            for _ in range(3):
                params, state = step(params, state)
            jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-9), both, params)


@pytest.mark.parametrize("name", OURS)
def test_bfloat16_and_abstract_state(name):
    tx = OURS[name]
    params = jax.tree.map(jnp.bfloat16, PARAMS)
    state = jax.eval_shape(tx.init, params)
    assert types(state) == types(jit(tx.init)(params))
    new_params, new_state = jax.eval_shape(stepped(tx), params, state)
    assert types(new_params) == types(params)
    assert types(new_state) == types(state)


@pytest.mark.parametrize("name", ["shampoo", "soap", "lookahead", "conjugate_gradient"])
def test_moments_are_sharded_as_their_parameter_and_factors_are_not_over_model(name):
    mesh = AbstractMesh((2, 1, 4), AXES)
    params = {"blocks": [{"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((8, 32), jnp.float32)}}}]}
    state = jax.eval_shape(OURS[name].init, params)
    found = jax.tree.map(lambda x, sharding: (x.shape, sharding.spec), state, state_sharding(state, mesh))
    found = jax.tree.leaves(
        found, is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], PartitionSpec)
    )
    moments = [spec for shape, spec in found if shape == (8, 32)]
    assert moments and all(spec == PartitionSpec(None, "model") for spec in moments)
    assert all(spec == PartitionSpec() for shape, spec in found if shape != (8, 32))
