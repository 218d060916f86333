"""Products taken out of scans: the same results and gradients, and fewer products at each step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from grids import thinned
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxaccel as ja

moved = functools.partial(ja.retarget, backend="gpu")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def products_in_loops(f, *args):
    """How many matrix products the scans of a program run at each step, by loop."""

    def count(jaxpr):
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        total = 0
        for eqn in jaxpr.eqns:
            named = eqn.params.get("product", eqn.primitive).name
            total += named == "dot_general"
            subs = [p for p in eqn.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
            inner = sum(count(sub) for sub in subs)
            if eqn.primitive.name == "scan":
                found.append(inner)
            total += inner
        return total

    found = []
    count(jax.make_jaxpr(f)(*args))
    return found


def assert_near(got, want, rtol=1e-4):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=1e-6))


class Gated(nnx.Module):
    def __init__(self, cell, features, rngs):
        self.rnn = nnx.RNN(cell(features, features, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(features, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_the_step_of_a_recurrent_network(cell):
    graph, params, rest = nnx.split(Gated(cell, 8, nnx.Rngs(0)), nnx.Param, ...)
    x = normal(4, 10, 8)

    def step(params, x):
        def loss(params):
            return jnp.sum(nnx.merge(graph, params, rest, copy=True)(x) ** 2)

        return jax.value_and_grad(loss)(params)

    assert_near(jax.jit(moved(step))(params, x), jax.jit(step)(params, x))
    before, after = products_in_loops(step, params, x), products_in_loops(moved(step), params, x)
    assert after == [1, 1] and sum(before) > 2 * sum(after)


# Bodies (carry, row, weights) -> (carry, out).
BODIES = {
    "weights on the left": lambda c, x, w: (jnp.tanh((w["a"] @ x[:, None])[:, 0] + w["b"] @ c), c),
    "transposed weights": lambda c, x, w: (jnp.tanh(x @ w["a"].T + c @ w["b"].T), c[::-1]),
    "a transposed input": lambda c, x, w: (jnp.tanh(x[None].T.T @ w["a"])[0] + c, c),
    "the input alone": lambda c, x, w: (c + 1, x @ w["a"] @ w["b"]),
    "the carry alone": lambda c, x, w: (jnp.tanh(c @ w["a"] + c @ w["b"]), x),
    "a product used twice": lambda c, x, w: (c + x @ w["a"], jnp.sin(x @ w["a"]) @ w["b"]),
    "weights that change": lambda c, x, w: (jnp.tanh(c @ (w["a"] * x) + c @ w["b"]), c),
    "an outer product": lambda c, x, w: (jnp.tanh(jnp.outer(x, c) @ w["b"][0] + x @ w["a"]), c),
    "nothing to take out": lambda c, x, w: (jnp.tanh(c * x), c),
}


BODIES |= {
    "a sum that broadcasts": lambda c, x, w: (
        jnp.tanh(c),
        (c[:1, None] @ w["a"][:1] + (c[:, None] * x) @ w["b"]).sum(0),
    ),
    "outer products summed": lambda c, x, w: (c + jnp.sin(x), jnp.tensordot(x, c, 0) @ w["a"] @ w["b"]),
    "the same matrix twice": lambda c, x, w: (jnp.tanh(c @ w["a"] + x @ w["a"]), c @ w["a"]),
    "a product with itself": lambda c, x, w: (c + x @ w["a"], jnp.dot(c, c) * x),
}


@pytest.mark.parametrize(
    ("name", "options"), thinned(2, BODIES, [{}, {"reverse": True, "unroll": 3}]), ids=str
)
def test_every_kind_of_body(name, options):
    w, c, xs = {"a": normal(5, 5), "b": normal(5, 5, seed=1)}, normal(5, seed=2), normal(7, 5, seed=3)

    def f(w, c, xs):
        end, outs = jax.lax.scan(lambda c, x: BODIES[name](c, x, w), c, xs, **options)
        return jnp.sum(jnp.cos(end)) + jnp.sum(outs**2)

    assert_near(moved(f)(w, c, xs), f(w, c, xs))
    gradient = jax.grad(f, argnums=(0, 1, 2))
    assert_near(jax.jit(moved(gradient))(w, c, xs), jax.jit(gradient)(w, c, xs))
    assert_near(jax.jit(jax.grad(moved(f), argnums=(0, 1, 2)))(w, c, xs), gradient(w, c, xs))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.sampled_from(["ij", "ji"])
)  # fmt: skip
@pytest.mark.slow
def test_shapes_and_axes(steps, batch, features, reverse, layout):
    """Any einsum of the input and of the carry, with several matrices each."""
    sizes = {"i": features, "j": features}
    w = [normal(*(sizes[a] for a in layout), seed=k) for k in range(4)]
    c, xs = normal(batch, features, seed=5), normal(steps, batch, features, seed=6)

    def f(w, c, xs):
        def body(c, x):
            parts = [jnp.einsum(f"bi,{layout}->bj", y, m) for y, m in zip((x, x, c, c), w, strict=True)]
            return jnp.tanh(parts[0] * parts[2] + parts[1]), parts[3]

        end, outs = jax.lax.scan(body, c, xs, reverse=reverse)
        return jnp.sum(end**2) + jnp.sum(outs)

    gradient = jax.value_and_grad(f, argnums=(0, 1, 2))
    assert_near(jax.jit(moved(gradient))(w, c, xs), jax.jit(gradient)(w, c, xs))
    if steps:
        # That of the carry; its gradient, and that of the input.
        assert products_in_loops(moved(gradient), w, c, xs) == [1, 2]


def recurrent(w, c, xs):
    def body(c, x):
        c = jnp.tanh(x @ w["a"] + c @ w["b"])
        return c, c

    return jnp.sum(jax.lax.scan(body, c, xs)[1] ** 2)


def operands(batch=2, steps=6, features=4):
    w = {"a": normal(features, features), "b": normal(features, features, seed=1)}
    return w, normal(batch, features, seed=2), normal(steps, batch, features, seed=3)


def test_narrow_products_stay_narrow():
    gradient = jax.grad(ja.bfloat16(recurrent, lowering="bfloat16", backend="tpu"))
    w, c, xs = operands()
    assert_near(moved(gradient)(w, c, xs), gradient(w, c, xs), 0.02)
    text = jax.jit(moved(gradient)).lower(w, c, xs).as_text()
    assert products_in_loops(moved(gradient), w, c, xs) == [1, 1]
    assert all("bf16" in line for line in text.splitlines() if "stablehlo.dot_general" in line)


def test_loops_in_loops_and_under_other_transformations():
    w, c, xs = operands()

    def nested(w, c, xs):
        return jax.lax.scan(lambda s, k: (s + recurrent(w, c * k, xs), None), 0.0, jnp.arange(3.0))[0]

    gradient = jax.grad(nested)
    assert_near(moved(gradient)(w, c, xs), gradient(w, c, xs))
    remat = jax.grad(jax.checkpoint(recurrent))
    assert_near(jax.jit(moved(remat))(w, c, xs), remat(w, c, xs))
    many = jax.vmap(jax.grad(recurrent), (None, 0, None))
    cs = jnp.stack([c, 2 * c])
    assert_near(moved(many)(w, cs, xs), many(w, cs, xs))
    assert_near(jax.vmap(moved(jax.grad(recurrent)), (None, 0, None))(w, cs, xs), many(w, cs, xs))


def test_what_has_many_rows_or_would_keep_much_stays_in_the_loop():
    """A loop over micro-batches saves the memory that one large product would take."""
    w, c, xs = operands(batch=200)
    gradient = jax.grad(recurrent)
    assert products_in_loops(moved(gradient), w, c, xs) == products_in_loops(gradient, w, c, xs)
    w, c, xs = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x) for x in operands(features=4)
    )
    long = jax.ShapeDtypeStruct((2**22, *xs.shape[1:]), xs.dtype)
    assert products_in_loops(gradient, w, c, long) == [2, 3]
    assert products_in_loops(moved(gradient), w, c, long) == [1, 3], "x @ a + c @ b became one product"


def test_explain_says_so_and_tpus_are_left_alone():
    w, c, xs = operands()
    rows = ja.explain(moved(jax.grad(recurrent)), w, c, xs).rows
    loops = [row["lowering"] for row in rows if row["site"].startswith("scan")]
    assert loops == ["products: 1 before the loop", "products: 2 after it"]
    plain = jax.grad(recurrent)
    on_tpu = ja.retarget(plain, backend="tpu")
    assert products_in_loops(on_tpu, w, c, xs) == products_in_loops(plain, w, c, xs)


@pytest.mark.parametrize(("batch", "forward", "gradient"), [(16, [1], [1, 1]), (32, [1], [1, 2])])
def test_on_a_cpu_only_sums_of_few_rows_leave_the_loop(batch, forward, gradient):
    w, c, xs = operands(batch=batch)
    on_cpu, grad = functools.partial(ja.retarget, backend="cpu"), jax.grad(recurrent)
    assert products_in_loops(recurrent, w, c, xs) == [2] and products_in_loops(grad, w, c, xs) == [2, 3]
    assert products_in_loops(on_cpu(recurrent), w, c, xs) == forward
    assert products_in_loops(on_cpu(grad), w, c, xs) == gradient
    assert_near(on_cpu(grad)(w, c, xs), grad(w, c, xs))


def test_a_loop_without_results_runs(capfd):
    def f(xs):
        jax.lax.scan(lambda _, x: (jax.debug.print("{}", x), None), None, xs)
        return xs.sum()

    assert moved(f)(jnp.arange(3.0)) == 3
    jax.effects_barrier()
    assert capfd.readouterr().out.split() == ["0.0", "1.0", "2.0"]


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_collected_products_of_any_rank(axes):
    """What two carries collect has one operand in common."""
    xs = [normal(4, *shape, seed=k) for k, shape in enumerate(((3, 3), (3, 3), (3, 3)))]

    def f(c, xs):
        def body(c, row):
            x, y, z = row
            return (c[0] + jnp.tensordot(x, y, axes), c[1] + jnp.tensordot(x, z, axes)), None

        return jax.lax.scan(body, c, xs)[0]

    shape = jnp.tensordot(xs[0][0], xs[1][0], axes).shape
    c = (jnp.ones(shape), jnp.zeros(shape))
    assert_near(moved(f)(c, xs), f(c, xs))
    assert products_in_loops(moved(f), c, xs) == [0]


def test_products_with_a_scale_for_each_operand_stay_apart():
    """float8 has one scale for an operand: a small matrix beside a large one would vanish."""

    def f(w, c):
        def body(c, _):
            return jnp.tanh(c @ w), c @ (w * 1e-6)

        return jax.lax.scan(body, c, None, length=3)

    narrow = ja.float8(f, backend="cpu", emulate=True)
    w, c = normal(4, 4), normal(2, 4)
    assert_near(moved(narrow)(w, c), narrow(w, c))


def test_loops_in_a_loop_that_is_rebuilt():
    w, c, xs = operands()

    def f(w, c, xs):
        def body(total, x):
            grads = jax.grad(recurrent)(w, c, x[:, None])
            return jax.tree.map(jnp.add, total, grads), jnp.sum(x[0] @ w["a"])

        return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, w), jnp.stack([xs, 2 * xs]))

    xs = normal(6, 4, seed=3)
    c = c[:1]
    assert_near(moved(f)(w, c, xs), f(w, c, xs))
    # Forward, backward, and the loop around them, in which theirs count as well.
    assert products_in_loops(f, w, c, xs) == [2, 3, 6]
    assert products_in_loops(moved(f), w, c, xs) == [1, 1, 3]


def test_what_a_loop_keeps_is_limited_as_a_whole():
    names = "abcdefgh"
    w = {name: jax.ShapeDtypeStruct((512, 512), jnp.float32) for name in names}
    xs = jax.ShapeDtypeStruct((256, 64, 512), jnp.float32)  # each product: 32 MiB

    def f(w, xs):
        def body(c, x):
            return c + 1, sum(jnp.sin(x @ w[name]) for name in names)

        return jax.lax.scan(body, 0.0, xs)

    (left,) = products_in_loops(moved(f), w, xs)
    assert left == 1, "two left the loop, six became one"
    (loop,) = (row for row in ja.explain(moved(f), w, xs).rows if row["site"].startswith("scan"))
    assert loop["lowering"] == "products: 2 before the loop, 6 merged in it"
