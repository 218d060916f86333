"""Rules that change nothing: programs that are entered everywhere give the same bits, forward and backward."""

import functools
import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen, nnx
from grids import slow_but
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.ode import odeint

from jaxaccel import models
from jaxaccel.core.interpret import Transformation, transform
from jaxaccel.models.adapter import as_model

ENTERED = ("dot_general", "conv_general_dilated", "gather", "exp", "add", "mul")
# LLVM's optimizations are most of the compile time and see nothing that differs.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


ASKED = []


def identity(f):
    def rule(site, *_):
        ASKED.append(site.name)
        return NotImplemented

    return transform(f, Transformation("identity", dict.fromkeys(ENTERED, rule)))


def inexact(x):
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def cotangent(x):
    if not inexact(x):
        return np.zeros(x.shape, jax.dtypes.float0)
    return jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(x.dtype)


def differentiated(f, mode):
    """(results, derivatives in all floating arguments), as `mode` says, of `f`."""

    def both(*args):
        leaves, tree = jax.tree.flatten(args)
        chosen = [i for i, x in enumerate(leaves) if inexact(x)]

        def of_floats(*floats):
            now = list(leaves)
            for i, x in zip(chosen, floats, strict=True):
                now[i] = x
            return f(*jax.tree.unflatten(tree, now))

        floats = [leaves[i] for i in chosen]
        if mode == "forward":
            return jax.jvp(of_floats, floats, [cotangent(x) for x in floats])
        out, pullback = jax.vjp(of_floats, *floats)
        return out, pullback(jax.tree.map(cotangent, out))

    return f if mode == "values" else both


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert a.tobytes() == b.tobytes(), f"{(a != b).sum()} of {a.size} differ: {a} {b}"


def assert_identity(f, args, mode="backward", both=False):
    """That the identity of `f` and, with `both`, the identity of its derivative are as `f` is."""
    ASKED.clear()
    expected = jit(differentiated(f, mode))(*args)
    assert_same(jit(differentiated(identity(f), mode))(*args), expected)
    if both:
        assert ASKED
        assert_same(jit(identity(differentiated(f, mode)))(*args), expected)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, Y, SQUARE = normal(3, 4), normal(4, 5, seed=1), normal(4, 4, seed=2)
POSITIVE = SQUARE @ SQUARE.T + 4 * jnp.eye(4)
VECTOR, BATCH = normal(6, seed=3), normal(2, 7, 4, seed=4)
IMAGES, KERNEL = normal(2, 6, 6, 4, seed=5), normal(3, 3, 4, 4, seed=6)
INDICES = jnp.array([[2, 0], [1, 1], [0, 3]])
KEY = jax.random.key(1)


# Our own models.

MODELS = {
    "mlp": (lambda *, rngs: Mlp(rngs=rngs), (8,)),
    "convnet": (functools.partial(models.ConvNet, (4, 6), hidden=8, image_size=8, channels=1), (8, 8, 1)),
    "resnet_cifar": (functools.partial(models.ResNetCifar, 8, width=2), (8, 8, 3)),
    "resnet_bottleneck": (functools.partial(models.ResNet, (1, 1), bottleneck=True, width=2), (16, 16, 3)),
    "vit": (
        functools.partial(
            models.VisionTransformer, width=8, depth=1, heads=2, patch_size=4, image_size=8, dropout=0.1
        ),
        (8, 8, 3),
    ),
    "linen": (lambda: LinenNet(), (8, 8, 1)),
}  # fmt: skip


class Mlp(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.norm = nnx.Linear(8, 6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.gelu(self.norm(self.dense(x))))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Conv(4, (3, 3))(x)))
        x = linen.Dropout(0.2, deterministic=not train)(linen.avg_pool(x, (2, 2), (2, 2)))
        return linen.Dense(5)(x.reshape(x.shape[0], -1))


def made(name):
    factory, shape = MODELS[name]
    x = normal(4, *shape)
    model = as_model(factory, {"classes": 5}, (jax.ShapeDtypeStruct(x.shape, x.dtype),))
    return model.apply, *jax.jit(model.init)(KEY), x


LARGEST = [("resnet_bottleneck", True), ("vit", True), ("linen", True)]
"""They have what the others have."""


@pytest.mark.parametrize(("name", "train"), slow_but(LARGEST, itertools.product(MODELS, (True, False))))
def test_models(name, train):
    apply, params, state, x = made(name)
    apply = functools.partial(apply, train=train)

    def step(apply, params):
        def loss(params):
            logits, new = apply(params, state, x, key=KEY)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4))
            return losses.mean(), (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    expected = jit(functools.partial(step, apply))(params)
    assert_same(jit(functools.partial(step, identity(apply)))(params), expected)
    if train:
        assert_same(jit(identity(functools.partial(step, apply)))(params), expected)


def test_eager_is_eager():
    apply, params, state, x = made("mlp")

    def f(params):
        return apply(params, state, x, key=KEY, train=True)[0].sum()

    # Small functions that JAX compiles where they stand are part of the traced program, and not compiled apart.
    leaves, tree = jax.tree.flatten(params)
    traced = jax.extend.core.jaxpr_as_fun(
        jax.make_jaxpr(lambda *leaves: f(jax.tree.unflatten(tree, leaves)))(*leaves)
    )
    assert_same([identity(f)(params)], traced(*leaves))
    gradients = jax.grad(lambda leaves: traced(*leaves)[0])(leaves)
    assert_same(jax.tree.leaves(jax.grad(identity(f))(params)), gradients)


# Losses and optimizers.

LOGITS, LABELS = normal(4, 5), jax.nn.softmax(normal(4, 5, seed=1))
LOSSES = {
    "softmax_cross_entropy": (optax.softmax_cross_entropy, LOGITS, LABELS),
    "with_integer_labels": (
        optax.softmax_cross_entropy_with_integer_labels, LOGITS, jnp.array([0, 4, 2, 1]),
    ),
    "sigmoid_binary_cross_entropy": (optax.sigmoid_binary_cross_entropy, LOGITS, LABELS),
    "sigmoid_focal_loss": (optax.sigmoid_focal_loss, LOGITS, LABELS),
    "huber_loss": (optax.huber_loss, LOGITS, LABELS),
    "l2_loss": (optax.l2_loss, LOGITS, LABELS),
    "log_cosh": (optax.log_cosh, LOGITS, LABELS),
    "hinge_loss": (optax.hinge_loss, LOGITS, jnp.sign(LABELS - 0.2)),
    "cosine_distance": (optax.cosine_distance, LOGITS, LABELS),
    "kl_divergence": (optax.kl_divergence, jax.nn.log_softmax(LOGITS), LABELS),
    "safe_softmax": (optax.safe_softmax_cross_entropy, LOGITS, LABELS),
    "poly_loss": (optax.losses.poly_loss_cross_entropy, LOGITS, LABELS),
    "triplet_margin_loss": (optax.losses.triplet_margin_loss, LOGITS, LABELS, LOGITS[::-1]),
    "ctc_loss": (
        optax.ctc_loss, normal(2, 6, 5), jnp.zeros((2, 6)), jnp.array([[1, 2], [3, 3]]), jnp.zeros((2, 2)),
    ),
    "sparsemax_loss": (optax.losses.multiclass_sparsemax_loss, LOGITS, jnp.array([0, 4, 2, 1])),
    "projection": (optax.projections.projection_simplex, VECTOR),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    f, *args = LOSSES[name]
    assert_identity(f, args)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(optax.cosine_decay_schedule(1e-2, 100)),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "lion": optax.lion(1e-3),
    "lars": optax.lars(0.1),
    "lamb": optax.lamb(1e-2),
    "novograd": optax.novograd(1e-2),
    "muon": optax.contrib.muon(1e-2),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2, warmup_steps=3),
    "prodigy": optax.contrib.prodigy(),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.add_noise(0.1, 0.5, key=1), optax.sgd(1.0)),
    "every_three": optax.MultiSteps(optax.adam(1e-2), 3),
    "accumulated": optax.apply_if_finite(optax.rmsprop(1e-2), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    optimizer = OPTIMIZERS[name]
    params = {"kernel": X, "bias": VECTOR}
    grads = jax.tree.map(lambda x: jnp.cos(3 * x), params)

    def step(params, grads):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    assert_identity(step, (params, grads), "values")


def test_line_search():
    def loss(x):
        return jnp.sum((SQUARE @ x - 1) ** 2)

    def step(x):
        optimizer = optax.lbfgs()
        value, grad = jax.value_and_grad(loss)(x)
        state = optimizer.init(x)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), optax.tree.get(state, "value")

    assert_identity(step, (VECTOR[:4],), "values")


# JAX's own functions.

ACTIVATIONS = (
    *("relu", "relu6", "gelu", "silu", "swish", "softplus", "sigmoid", "log_sigmoid", "elu", "selu", "celu", "glu"),
    *("leaky_relu", "hard_tanh", "hard_swish", "mish", "squareplus", "softmax", "log_softmax", "logsumexp"),
    *("standardize", "soft_sign", "sparse_plus", "sparse_sigmoid", "identity", "log1mexp"),
)  # fmt: skip


def test_activations():
    def every(x):
        return {name: getattr(jax.nn, name)(jnp.abs(x) if name == "log1mexp" else x) for name in ACTIVATIONS}

    assert_identity(every, (X,))


LINALG = {
    "svd": (lambda a: jnp.linalg.svd(a, full_matrices=False), X),
    "qr": (jnp.linalg.qr, Y.T),
    "cholesky": (jnp.linalg.cholesky, POSITIVE),
    "solve": (jnp.linalg.solve, POSITIVE, Y),
    "cho_solve": (
        lambda a, b: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b), POSITIVE, Y,
    ),
    "triangular_solve": (lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True), POSITIVE, Y),
    "eigh": (jnp.linalg.eigh, POSITIVE),
    "inv": (jnp.linalg.inv, POSITIVE),
    "det": (lambda a: (jnp.linalg.det(a), jnp.linalg.slogdet(a)), POSITIVE),
    "pinv": (jnp.linalg.pinv, X),
    "lstsq": (lambda a, b: jnp.linalg.lstsq(a, b)[0], Y.T, VECTOR[:5]),
    "expm": (jax.scipy.linalg.expm, SQUARE),
    "matrix_power": (lambda a: jnp.linalg.matrix_power(a, 5), SQUARE),
    "norms": (lambda a: [jnp.linalg.norm(a, k) for k in (None, 1, 2, "nuc")], SQUARE),
    "multi_dot": (lambda a, b: jnp.linalg.multi_dot([a, b, b.T]), X, Y),
    "einsum": (lambda a, b: jnp.einsum("bti,io,bsi->tso", a, b, a), BATCH, Y),
    "tensordot": (lambda a, b: jnp.tensordot(a, b, ((2,), (0,))), BATCH, Y),
    "kron": (jnp.kron, X, Y),
    "cg": (lambda a, b: jax.scipy.sparse.linalg.cg(a, b, maxiter=6)[0], POSITIVE, VECTOR[:4]),
    "gmres": (lambda a, b: jax.scipy.sparse.linalg.gmres(a, b, maxiter=3)[0], POSITIVE, VECTOR[:4]),
    "bicgstab": (lambda a, b: jax.scipy.sparse.linalg.bicgstab(a, b, maxiter=6)[0], POSITIVE, VECTOR[:4]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINALG)
def test_linear_algebra(name):
    f, *args = LINALG[name]
    assert_identity(f, args)


def random(key):
    keys = iter(jax.random.split(key, 20))
    drawn = [
        getattr(jax.random, name)(next(keys), shape=(3,))
        for name in ("normal", "uniform", "gumbel", "laplace")
    ]
    drawn += [jax.random.gamma(next(keys), 2.0, (3,)), jax.random.beta(next(keys), 2.0, 3.0, (3,))]
    drawn += [jax.random.permutation(next(keys), 7), jax.random.choice(next(keys), 9, (4,), replace=False)]
    drawn += [
        jax.random.categorical(next(keys), jnp.arange(4.0)),
        jax.random.bernoulli(next(keys), 0.3, (5,)),
    ]
    drawn += [jax.random.truncated_normal(next(keys), -1, 1, (3,)), jax.random.orthogonal(next(keys), 3)]
    drawn += [
        jax.random.rademacher(next(keys), (3,)),
        jax.random.multivariate_normal(next(keys), X[0], POSITIVE),
    ]
    if jax.random.key_impl(key) == "threefry2x32":
        drawn.append(jax.random.poisson(next(keys), 3.0, (3,)))
    return [*drawn, next(keys), jax.random.fold_in(key, 3), jax.random.randint(next(keys), (3,), 0, 9)]


@pytest.mark.parametrize("implementation", ["threefry2x32", pytest.param("rbg", marks=pytest.mark.slow)])
def test_random_numbers(implementation):
    key = jax.random.key(3, impl=implementation)
    assert_identity(random, (key,), "values")
    assert_same(identity(lambda key: jax.random.normal(key, (3,)))(key), jax.random.normal(key, (3,)))


def test_implicit_reparametrization():
    assert_identity(lambda a: jax.random.gamma(KEY, jnp.exp(a)), (VECTOR,))


def loops():
    """Cumulative operations and loops of every kind that can be differentiated backwards."""

    def rnn(w, carry, x):
        carry = jnp.tanh(carry @ w + x)
        return carry, {"y": carry.sum(), "x": x * 2}

    def scan(**options):
        return lambda w, xs: jax.lax.scan(functools.partial(rnn, w), jnp.zeros(4), xs, **options)

    def affine(a, b):
        return a[0] @ b[0], (b[0] @ a[1][..., None])[..., 0] + b[1]

    matrices = jax.vmap(jnp.diag)(BATCH[0]) * 0.3
    return {
        "scan": (scan(), SQUARE, BATCH[0]),
        "scan_reverse": (scan(reverse=True), SQUARE, BATCH[0]),
        "scan_unrolled": (scan(unroll=3), SQUARE, BATCH[0]),
        "scan_whole": (scan(unroll=True), SQUARE, BATCH[0]),
        "scan_without_xs": (
            lambda w, x: jax.lax.scan(lambda c, _: (jnp.sin(w @ c), c), x, None, length=5), SQUARE, VECTOR[:4],
        ),
        "scan_of_scan": (
            lambda w, xs: jax.lax.scan(lambda c, x: scan()(w + c[0], x), jnp.zeros((4,)), xs), SQUARE, BATCH,
        ),
        "scan_of_remat": (
            lambda w, xs: jax.lax.scan(jax.checkpoint(functools.partial(rnn, w)), jnp.zeros(4), xs), SQUARE, BATCH[0],
        ),
        "map": (lambda w, xs: jax.lax.map(lambda x: jnp.exp(x @ w), xs, batch_size=3), SQUARE, BATCH[0]),
        "fori_of_known_length": (lambda w: jax.lax.fori_loop(0, 4, lambda i, c: jnp.sin(c @ w) + i, X), SQUARE),
        "associative_scan": (
            lambda a, b: jax.lax.associative_scan(jax.vmap(affine), (a, b)), matrices, BATCH[0],
        ),
        "associative_scan_reverse": (lambda x: jax.lax.associative_scan(jnp.multiply, x, reverse=True), VECTOR),
        "cumulative": (
            lambda x: [
                getattr(jax.lax, f"cum{name}")(x * x) for name in ("sum", "prod", "logsumexp", "max", "min")
            ],
            VECTOR,
        ),
        "cond": (lambda x: jax.lax.cond(x.sum() > 0, jnp.exp, lambda x: x * x, x), VECTOR),
        "switch": (
            lambda x: [jax.lax.switch(i, [jnp.exp, jnp.sin, lambda x: x @ x * x], x) for i in range(3)], VECTOR,
        ),
        "vmapped_cond": (jax.vmap(lambda x: jax.lax.cond(x > 0, jnp.exp, lambda x: x * x, x)), VECTOR),
        "vmapped_scan": (jax.vmap(scan(), in_axes=(None, 0)), SQUARE, BATCH),
        "platform_dependent": (
            lambda x: jax.lax.platform_dependent(x, cpu=jnp.exp, default=lambda x: x * 2), VECTOR,
        ),
        "hessian": (jax.hessian(lambda x: jnp.sum(jnp.exp(x) * (x @ x))), VECTOR),
        "jacobians": (lambda x: (jax.jacfwd(jnp.cumprod)(x), jax.jacrev(jnp.cumprod)(x)), VECTOR),
        "linearize": (lambda x: jax.linearize(lambda x: jnp.exp(x) * x, x)[1](jnp.ones(6)), VECTOR),
        "remat": (jax.checkpoint(lambda x: jnp.exp(jnp.sin(x) * x)), VECTOR),
        "remat_saving_dots": (
            jax.checkpoint(lambda x, y: jnp.sin(x @ y) @ y.T, policy=jax.checkpoint_policies.dots_saveable), X, Y,
        ),
        "remat_by_name": (
            jax.checkpoint(
                lambda x: jnp.sin(checkpoint_name(jnp.exp(x), "e")),
                policy=jax.checkpoint_policies.save_only_these_names("e"),
            ),
            VECTOR,
        ),
    }  # fmt: skip


LOOPS = loops()


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name):
    f, *args = LOOPS[name]
    assert_identity(f, args, both=True)


def while_loop(w, x):
    return jax.lax.while_loop(
        lambda c: c[0] @ c[0] < 50, lambda c: (c[0] * 1.5 + jnp.exp(w @ c[1]), c[1]), (x, x)
    )


FORWARD = {
    "while": (while_loop, 0.1 * SQUARE, 0.1 * VECTOR[:4]),
    "vmapped_while": (jax.vmap(while_loop, in_axes=(None, 0)), 0.1 * SQUARE, 0.1 * X),
    "fori_of_unknown_length": (
        lambda n, w, x: jax.lax.fori_loop(0, n, lambda i, c: jnp.exp(-(w @ c)) + i, x),
        jnp.int32(3),
        SQUARE,
        VECTOR[:4],
    ),
    "bisection": (lambda x: jnp.interp(x, jnp.arange(5.0), jnp.exp(jnp.arange(5.0))), VECTOR),
    "jacobian_in_while": (
        lambda x: jax.lax.while_loop(
            lambda x: jnp.abs(x @ x - 2) > 1e-3, lambda x: x - (x @ x - 2) / 4 * jax.grad(jnp.dot)(x, x), x
        ),
        VECTOR / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_loops_of_unknown_length(name):
    f, *args = FORWARD[name]
    assert_identity(f, args, "forward", both=True)


# Functions with derivatives of their own.


def square_root(a):
    """The Newton iteration, differentiated at the fixed point."""

    def solve(f, guess):
        return jax.lax.fori_loop(0, 9, lambda _, x: x - f(x) / jax.grad(lambda y: f(y).sum())(x), guess)

    return jax.lax.custom_root(
        lambda x: x * x - a, jnp.ones_like(a), solve, lambda g, y: y / g(jnp.ones_like(y))
    )


def linear_solve(a, b):
    return jax.lax.custom_linear_solve(
        lambda x: a @ x, jnp.exp(b), lambda _, b: jnp.linalg.inv(a) @ b, lambda _, b: jnp.linalg.inv(a.T) @ b
    )


@jax.custom_jvp
def with_jvp(x, y):
    return {"out": jnp.exp(x) * y}


@with_jvp.defjvp
def _with_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return with_jvp(x, y), {"out": jnp.exp(x) * y * dx + 2 * jnp.exp(x) * dy}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def with_vjp(x, y, power):
    return jnp.sum(x * y) ** power, x


def _forward(x, y, power):
    return with_vjp(x, y, power), (x, y)


def _backward(power, saved, cotangents):
    x, y = saved
    return jnp.exp(x) * y * cotangents[0] * power, None


with_vjp.defvjp(_forward, _backward)


@jax.custom_vjp
def integers_too(x, i):
    return x[i] * 2


integers_too.defvjp(
    lambda x, i: (x[i] * 2, (i, x.shape)),
    lambda saved, ct: (jnp.zeros(6).at[saved[0]].add(3 * ct), None),
)

CUSTOM = {
    "custom_root": (lambda x: square_root(jnp.exp(x)), VECTOR),
    "custom_linear_solve": (linear_solve, POSITIVE, VECTOR[:4]),
    "custom_jvp": (with_jvp, VECTOR, VECTOR[::-1]),
    "custom_jvp_of_constant": (lambda x: with_jvp(x, jnp.ones(6)), VECTOR),
    "custom_vjp": (lambda x, y: with_vjp(x, y, 3), VECTOR, VECTOR[::-1]),
    "custom_vjp_of_integers": (integers_too, VECTOR, jnp.array([1, 1, 4])),
    "custom_gradient": (
        lambda x: jax.custom_gradient(lambda x: (jnp.exp(x), lambda g: (g * x * 2,)))(x), VECTOR,
    ),
    "vmapped_custom_vjp": (jax.vmap(lambda x, y: with_vjp(x, y, 2)), X, X[::-1]),
    "vmapped_custom_jvp": (jax.vmap(with_jvp, in_axes=(0, None)), X, X[0]),
    "scanned_custom_vjp": (
        lambda x: jax.lax.scan(lambda c, r: (c + with_vjp(r, c, 2)[1], with_jvp(r, c)), x[0], x), X,
    ),
    "remat_of_custom_vjp": (jax.checkpoint(lambda x: jnp.exp(with_vjp(x, x, 2)[0] / 90)), VECTOR),
    "custom_in_custom": (lambda x: jax.nn.relu(jax.nn.silu(with_jvp(x, x)["out"])), VECTOR),
    "stop_gradient": (lambda x: x * jax.lax.stop_gradient(jnp.exp(x)), VECTOR),
    "odeint": (
        lambda w, x: odeint(lambda y, t, w: -(w @ y) + t, x, jnp.arange(3.0) / 9, w),
        POSITIVE / 9,
        VECTOR[:4],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_derivatives(name):
    f, *args = CUSTOM[name]
    assert_identity(f, args, both=True)


@pytest.mark.parametrize("name", ["custom_jvp", "vmapped_custom_jvp", "custom_root", "custom_linear_solve"])
def test_custom_derivatives_forward(name):
    f, *args = CUSTOM[name]
    assert_identity(f, args, "forward", both=True)


def test_custom_batching():
    @jax.custom_batching.custom_vmap
    def f(x):
        return jnp.exp(x) * 2

    f.def_vmap(lambda size, batched, x: (jnp.exp(x) * 3, batched[0]))
    assert_identity(lambda x: (f(x), jax.vmap(f)(x)), (VECTOR,), "values")


# Indexing and reordering.

MOVES = {
    "gather": (lambda x, i: (x[i], x[:, i[:, 0]], x[i[:, 0], i[:, 1]], x[..., ::2], x[1:, None]), X, INDICES),
    "take": (
        lambda x, i: [jnp.take(x, i, axis=1, mode=mode) for mode in ("clip", "wrap", "fill")], X, INDICES,
    ),
    "take_along_axis": (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), X),
    "dynamic": (lambda x, i: (jax.lax.dynamic_slice(x, i, (2, 2)), x[i[0]], x[-i[1]]), X, jnp.array([1, 2])),
    "scatter": (
        lambda x, v, i: (
            *(x.at[i].set(v), x.at[i].add(v), x.at[i].mul(v, unique_indices=True)),
            *(x.at[i].min(v), x.at[i].max(v)),
        ),
        VECTOR, VECTOR[:3], jnp.array([4, 1, 2]),
    ),
    "dynamic_update": (lambda x, v: jax.lax.dynamic_update_slice(x, v, (1, 1)), X, X[:2, :2]),
    "segment_sum": (
        lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 0, 2, 1, 1]), num_segments=3), VECTOR,
    ),
    "sort": (lambda x: (jnp.sort(x), jnp.sort(x, axis=0, descending=True), jnp.argsort(x)), X),
    "sort_several": (lambda x, y: jax.lax.sort((x, y), num_keys=1), VECTOR, VECTOR[::-1]),
    "top_k": (lambda x: jax.lax.top_k(x, 2), X),
    "approx_max_k": (lambda x: jax.lax.approx_max_k(x, 2), X),
    "quantiles": (lambda x: (jnp.median(x), jnp.quantile(x, 0.3, axis=1)), X),
    "arg": (lambda x: (jnp.argmax(x), jnp.argmin(x, 0), jnp.max(x, 1), jnp.searchsorted(jnp.sort(x[0]), x[1])), X),
    "where": (lambda x: (jnp.where(x > 0, jnp.exp(x), 0), jnp.clip(x, -1, 1), jnp.nan_to_num(x / x)), X),
    "layout": (
        lambda x: (jnp.pad(x, 1, mode="reflect"), jnp.roll(x, 1), jnp.flip(x), jnp.repeat(x, 2, 0), jnp.tile(x, 2)), X,
    ),
    "fft": (
        lambda x: (jnp.fft.fft(x), jnp.fft.rfft(x).imag, jnp.fft.irfft(jnp.fft.rfft(x)), jnp.fft.fft2(x).real), X,
    ),
    "complex": (lambda x: jnp.exp(1j * x) @ jnp.conj(x).T, X),
    "reduce_window": (
        lambda x: (
            linen.max_pool(x, (3, 3), (2, 2)),
            linen.avg_pool(x, (2, 2), (2, 2), "SAME"),
            jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"),
        ),
        IMAGES,
    ),
    "convolutions": (
        lambda x, k: (
            jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
            jax.lax.conv_transpose(x, k, (2, 2), "SAME"),
            jax.lax.conv_general_dilated_patches(x, (2, 2), (2, 2), "VALID"),
        ),
        IMAGES, KERNEL,
    ),
    "resize": (lambda x: jax.image.resize(x, (2, 9, 4, 4), "bicubic"), IMAGES),
    "map_coordinates": (
        lambda x, c: jax.scipy.ndimage.map_coordinates(x, [c[0], c[1]], 1), X, 1.5 + jnp.sin(normal(2, 5)) / 2,
    ),
    "special": (
        lambda x: [
            getattr(jax.scipy.special, name)(jnp.abs(x) + 0.5)
            for name in ("gammaln", "digamma", "erf", "i0e", "ndtri")
        ],
        VECTOR / 20,
    ),
    "statistics": (lambda x: (jnp.cov(x), jnp.corrcoef(x), jnp.histogram(x, 4)[0], jnp.var(x, 0), jnp.diff(x)), X),
    "integers": (lambda x: (x @ x.T, x // 2, x << 1, jnp.bincount(x.ravel(), length=4)), INDICES),
    "half": (lambda x: x.astype(jnp.bfloat16) @ SQUARE.astype(jnp.bfloat16), X),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_indexing_and_reordering(name):
    f, *args = MOVES[name]
    assert_identity(f, args)


# Layers with loops inside.


class LinenRnn(linen.Module):
    cell: type

    @linen.compact
    def __call__(self, x):
        forward, backward = linen.RNN(self.cell(3)), linen.RNN(self.cell(3), reverse=True, keep_order=True)
        return linen.Bidirectional(forward, backward)(x)


@pytest.mark.parametrize("cell", [linen.LSTMCell, linen.GRUCell, linen.SimpleCell, linen.OptimizedLSTMCell])
def test_linen_rnns(cell):
    model = LinenRnn(cell)
    params = jax.jit(model.init)(KEY, BATCH)
    assert_identity(model.apply, (params, BATCH))


NNX = {
    "lstm": lambda rngs: nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs)),
    "optimized_lstm": lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(4, 3, rngs=rngs), unroll=2),
    "gru": lambda rngs: nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs), reverse=True),
    "simple": lambda rngs: nnx.RNN(nnx.SimpleCell(4, 3, rngs=rngs)),
    "attention": lambda rngs: SelfAttention(rngs=rngs),
    "embed": lambda rngs: Tied(rngs=rngs),
    "conv_transpose": lambda rngs: nnx.ConvTranspose(4, 3, (3,), strides=2, rngs=rngs),
    "norms": lambda rngs: nnx.Sequential(
        nnx.GroupNorm(4, num_groups=2, rngs=rngs), nnx.RMSNorm(4, rngs=rngs), nnx.InstanceNorm(4, rngs=rngs)
    ),
    "lora": lambda rngs: nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs),
    "einsum": lambda rngs: nnx.Einsum("bti,io->bto", (4, 3), (3,), rngs=rngs),
}


class SelfAttention(nnx.Module):
    def __init__(self, *, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, qkv_features=8, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x, mask=nnx.make_causal_mask(x[..., 0]))


class Tied(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)

    def __call__(self, x):
        return self.embed.attend(self.embed((jnp.abs(x[..., 0]) * 2).astype(jnp.int32)) + x)


@pytest.mark.parametrize("name", NNX)
def test_nnx_layers(name):
    graph, params, rest = nnx.split(NNX[name](nnx.Rngs(0)), nnx.Param, ...)
    assert_identity(lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), (params, BATCH))


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"bias": True}, {"grouped": True}, {"window": 2}]
)
def test_dot_product_attention(options):
    q, k, v = (normal(2, 5, 4, 3, seed=i) for i in range(3))
    if options.get("grouped"):
        k, v = k[:, :, :2], v[:, :, :2]
    more = {
        "is_causal": options.get("is_causal", False),
        "bias": normal(1, 4, 5, 5) if "bias" in options else None,
        "local_window_size": options.get("window"),
    }
    assert_identity(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **more), (q, k, v))


# What a function may return and take.


def test_arguments_and_results_that_are_no_arrays():
    def f(params, x, flag, *, scale, name=None):
        assert flag is True and name == "n" and isinstance(scale, float)
        return {"y": params["w"] * x * scale, "one": 1, "x": x, "none": None, "w": params["w"]}

    params, x = {"w": VECTOR}, np.ones(6, np.float32)
    assert_same(
        jax.tree.map(jnp.asarray, identity(f)(params, x, True, scale=2.0, name="n")),
        jax.tree.map(jnp.asarray, f(params, x, True, scale=2.0, name="n")),
    )


def test_results_that_are_arguments_or_constants():
    assert_identity(lambda x: (x, x, jnp.ones(3), jnp.arange(3), 2.0 * x[0]), (VECTOR,), "values")
    assert identity(lambda: jnp.exp(1.0))() == jnp.exp(1.0)
    assert identity(lambda x: None)(VECTOR) is None


def test_side_effects_happen_once_a_call():
    said = []

    def f(x):
        jax.debug.callback(lambda x: said.append(float(x)), x[0])
        return jnp.exp(x) + jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    assert_same(jit(identity(f))(VECTOR), jit(f)(VECTOR))
    jax.effects_barrier()
    assert said == [float(VECTOR[0])] * 2
    assert_identity(jax.remat(lambda x: jnp.exp(x)), (VECTOR,))


def test_donated_and_static_arguments_of_an_inner_jit():
    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def inner(x, power):
        return jnp.exp(x) ** power

    expected = jit(lambda x: inner(x * 1, 3))(VECTOR)
    assert_same(jit(identity(lambda x: inner(x * 1, 3)))(VECTOR), expected)
    assert not VECTOR.is_deleted()
