"""Nothing is silent: what could not be done is recorded, raises under ``strict=True``, and names are never confused."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.interpreters import mlir
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as Spec

import jaxaccel as ja
from jaxaccel.core import sites


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


W, X = {"kernel": normal(8, 8, scale=0.3), "bias": normal(8, seed=1)}, normal(4, 8, seed=2)
Q = ja.quantize(W)


def traced(f, *args):
    """The records of the outermost transformation of `f`."""
    with sites.record_runs() as runs:
        jax.eval_shape(f, *args)
    return runs[-1].records


def problems(f, *args):
    return [(r.kind, r.primitive, r.reason) for r in traced(f, *args) if r.kind != "site"]


# Bodies without a way in.


def with_linear_solve(params, x):
    def solve(_, b):
        return jnp.linalg.solve(params["kernel"] @ params["kernel"].T + jnp.eye(8), b)

    return jax.lax.custom_linear_solve(
        lambda v: params["kernel"] @ (params["kernel"].T @ v) + v, x[0], solve, symmetric=True
    )


def with_custom_batching(params, x):
    f = jax.custom_batching.custom_vmap(lambda w, x: x @ w)
    f.def_vmap(lambda size, batched, w, x: (x @ w, True))
    return f(params["kernel"], x)


call_p = jax.extend.core.Primitive("our_call")
call_p.multiple_results = True


@call_p.def_impl
def _run(*args, jaxpr):
    return jax.extend.core.jaxpr_as_fun(jaxpr)(*args)


@call_p.def_abstract_eval
def _shapes(*_, jaxpr):
    return jaxpr.out_avals


mlir.register_lowering(call_p, mlir.lower_fun(_run, multiple_results=True))


def with_a_call_of_our_own(params, x):
    jaxpr = jax.make_jaxpr(lambda w, x: x @ w)(params["kernel"], x)
    return call_p.bind(params["kernel"], x, jaxpr=jaxpr)[0]


UNKNOWN = {
    "custom_linear_solve": with_linear_solve,
    "custom_vmap_call": with_custom_batching,
    "our_call": with_a_call_of_our_own,
}


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "remat"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_body_that_cannot_be_entered_is_recorded(name, around):
    f = around(UNKNOWN[name])
    found = problems(ja.bfloat16(f), W, X)
    assert [(kind, primitive) for kind, primitive, _ in found] == [("not entered", name)]
    np.testing.assert_allclose(ja.bfloat16(f)(W, X), f(W, X), rtol=1e-5, atol=1e-6)
    with pytest.raises(ja.UserError, match=rf"bfloat16.*{name}: not entered"):
        ja.bfloat16(f, strict=True)(W, X)


@pytest.mark.parametrize("name", UNKNOWN)
def test_compressed_parameters_of_such_a_body_are_recorded_as_dense(name):
    f = UNKNOWN[name]
    assert ("materialized", "QuantArray") in [p[:2] for p in problems(ja.int8(f), Q, X)]
    np.testing.assert_allclose(ja.int8(f)(Q, X), f(ja.params.dequantize(Q), X), rtol=1e-4, atol=1e-5)
    with pytest.raises(ja.UserError, match=r"int8.*materialized"):
        ja.int8(f, strict=True)(Q, X)


def test_products_in_a_root_are_narrow_or_recorded():
    """JAX 0.10 writes the search for a root out, JAX 0.11 keeps it to itself."""

    def f(params, x):
        def solve(f, guess):
            return jax.lax.fori_loop(0, 3, lambda _, y: y - f(y), guess)

        return jax.lax.custom_root(
            lambda y: y - jnp.tanh(x @ params["kernel"] + y / 2),
            x,
            solve,
            lambda g, y: y,
        )

    records = traced(ja.bfloat16(f), W, X)
    assert records and all(r.after == "bfloat16" or r.kind == "not entered" for r in records)


def test_a_body_without_products_is_no_problem():
    def f(params, x):
        solved = jax.lax.custom_linear_solve(lambda v: 2 * v, x, lambda _, b: b / 2)
        return solved @ params["kernel"]

    assert problems(ja.bfloat16(f, strict=True), W, X) == []


# Compressed values that had to become dense.

DENSE = {
    "sort": (lambda params, x: x @ jnp.sort(params["kernel"]), "sort"),
    "softmax": (lambda params, x: x @ jax.nn.softmax(params["kernel"]), "reduce_max"),
    "sum": (lambda params, x: params["kernel"] + 1, "add"),
    "result": (lambda params, x: params, "is a result"),
    "carry": (
        lambda params, x: jax.lax.fori_loop(0, 2, lambda _, w: w * 0.5, params["kernel"]) + x[0],
        "is carried through a loop",
    ),
    "while": (
        lambda params, x: jax.lax.while_loop(
            lambda s: s[1].sum() < 1e3,
            lambda s: (s[0] * 0.5, s[1] * 2 + jnp.abs(x @ s[0]).sum()),
            (params["kernel"], x),
        )[1],
        "is carried through a loop",
    ),
    "branch": (
        lambda params, x: jax.lax.cond(x.sum() > 0, lambda w: w, lambda w: w.T, params["kernel"]),
        "leaves a loop or branch",
    ),
    "vmapped_branch": (
        lambda params, x: jax.vmap(
            lambda r: jax.lax.cond(r.sum() > 0, lambda w: r @ w, lambda w: r @ w.T, params["kernel"])
        )(x),
        "",
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_compressed_value_that_had_to_become_dense_is_recorded(name):
    f, reason = DENSE[name]
    found = problems(ja.int8(f), Q, X)
    assert {kind for kind, *_ in found} == {"materialized"} and any(reason in why for *_, why in found)
    wanted = f(ja.params.dequantize(Q), X)
    got = ja.int8(f, activations="none")(Q, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)
    with pytest.raises(ja.UserError, match=r"int8\(strict=True\): .*materialized"):
        ja.int8(f, strict=True)(Q, X)


def test_a_derivative_that_is_dropped_is_recorded():
    @jax.custom_jvp
    def f(w, x):
        return x @ w

    f.defjvp(lambda primals, tangents: (f(*primals), 7 * f(*primals)))

    def g(params, x):
        return f(params["kernel"], x)

    # It is told, and no obstacle: the product is one of integers as asked for.
    assert [kind for kind, *_ in problems(ja.int8(g), Q, X)] == ["primal only"]
    np.testing.assert_allclose(
        ja.int8(g, strict=True)(Q, X), X @ ja.params.dequantize(Q)["kernel"], rtol=0.02, atol=0.05
    )


def implicit(params, x):
    """The fixed point of a layer, differentiated by the implicit function theorem, as jaxopt does it."""

    @jax.custom_vjp
    def solve(w, x):
        return jax.lax.fori_loop(0, 50, lambda _, y: jnp.tanh(x + y @ w / 4), jnp.zeros_like(x))

    def forward(w, x):
        y = solve(w, x)
        return y, (w, x, y)

    def backward(saved, ct):
        w, x, y = saved
        _, pull = jax.vjp(lambda y: jnp.tanh(x + y @ w / 4), y)
        u = jax.lax.fori_loop(0, 50, lambda _, u: ct + pull(u)[0], ct)
        return jax.vjp(lambda w, x: jnp.tanh(x + y @ w / 4), w, x)[1](u)

    solve.defvjp(forward, backward)
    return solve(params["kernel"], x)


def rooted(params, x):
    def solve(f, guess):
        return jax.lax.fori_loop(0, 50, lambda _, y: y - f(y), guess)

    def linear(g, ct):
        return jax.lax.fori_loop(0, 50, lambda _, u: ct - (g(u) - u), ct)

    return jax.lax.custom_root(lambda y: y - jnp.tanh(x + y @ params["kernel"] / 4), x, solve, linear)


@pytest.mark.parametrize("f", [implicit, rooted])
def test_implicit_differentiation_is_strict_where_its_products_are_reached(f):
    for mode in ("none", "dynamic"):
        g = ja.int8(f, activations=mode)
        lost = [r for r in traced(g, Q, X) if r.kind in sites.LOST]
        want = f(ja.params.dequantize(Q), X)
        np.testing.assert_allclose(g(Q, X), want, rtol=0.05, atol=0.03 if mode == "dynamic" else 1e-4)
        if lost:
            with pytest.raises(ja.UserError, match=r"int8\(strict=True\)"):
                ja.int8(f, activations=mode, strict=True)(Q, X)
        else:
            np.testing.assert_array_equal(ja.int8(f, activations=mode, strict=True)(Q, X), g(Q, X))
    if f is implicit:
        assert [r for r in traced(ja.int8(f), Q, X) if r.kind in sites.LOST] == []
    narrow = jax.grad(lambda p: ja.bfloat16(f)(p, X).sum())(W)["kernel"]
    exact = jax.grad(lambda p: f(p, X).sum())(W)["kernel"]
    assert float(jnp.abs(narrow - exact).max()) < 0.05 * float(jnp.abs(exact).max())


# Where something became dense, its path is told.


def test_a_parameter_that_became_dense_is_named():
    params = {"a": Q, "b": {"deep": Q}, "c": Q}

    def f(p, x):
        y = x @ jnp.sort(p["a"]["kernel"]) + jnp.sum(p["b"]["deep"]["kernel"] + p["c"]["kernel"].T)
        return jax.lax.cond(x.sum() > 0, lambda w: w, lambda w: w.T, p["b"]["deep"]["kernel"]) + y.sum(), p[
            "c"
        ]

    found = [(r.path, r.name) for r in traced(ja.int8(f), params, X) if r.kind == "materialized"]
    paths = ["a/kernel", "b/deep/kernel", "c/kernel", "b/deep/kernel", "b/deep/kernel", "c/kernel"]
    assert sorted(found) == sorted((path, path) for path in paths)
    text = str(ja.explain(ja.int8(f), params, X))
    assert "b/deep/kernel" in text and "add has no rule for it" in text
    with pytest.raises(ja.UserError, match=r"a/kernel: materialized: sort has no rule for it"):
        ja.int8(f, strict=True)(params, X)


def test_an_empty_explanation_says_so():
    told = ja.explain(ja.bfloat16(lambda p, x: x + p["bias"]), W, X)
    assert told.rows == () and str(told) == "bfloat16: f has no matrix product, convolution or lookup"


# Grouped products, of mixtures of experts.

EXPERTS = {"experts": {"kernel": normal(3, 8, 5, seed=7)}, "gate": {"kernel": normal(8, 8, seed=8)}}
SIZES = jnp.array([2, 0, 4])


def experts(params, x, sizes=SIZES):
    return jax.lax.ragged_dot(jnp.tanh(x @ params["gate"]["kernel"]), params["experts"]["kernel"], sizes)


def by_groups(x, w):
    """In float64, from operands rounded to bfloat16."""
    x, w = (np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (x, w))
    return np.concatenate([x[:2] @ w[0], x[2:] @ w[2]])


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "remat"])
def test_grouped_products_are_narrow(around):
    x = normal(6, 8, seed=9)
    f = around(lambda p, x: jax.lax.ragged_dot(x, p["w"], SIZES))
    p = {"w": EXPERTS["experts"]["kernel"]}
    g = ja.bfloat16(f, lowering="bfloat16", strict=True)
    np.testing.assert_allclose(g(p, x), by_groups(x, p["w"]), rtol=1e-5, atol=1e-5)
    assert [(r.path, r.primitive, r.after, r.flops) for r in traced(g, p, x)] == [
        ("w", "ragged_dot_general", "bfloat16", 2 * 6 * 8 * 5)
    ]
    ct = normal(6, 5, seed=10)
    dp, dx = jax.vjp(g, p, x)[1](ct)
    x16, w16, ct16 = (np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (x, p["w"], ct))
    wanted = np.concatenate([ct16[:2] @ w16[0].T, ct16[2:] @ w16[2].T])
    np.testing.assert_allclose(dx, wanted, rtol=1e-5, atol=1e-5)
    wanted = np.stack([x16[:2].T @ ct16[:2], np.zeros((8, 5)), x16[2:].T @ ct16[2:]])
    np.testing.assert_allclose(dp["w"], wanted, rtol=1e-5, atol=1e-5)
    _, tangent = jax.jvp(lambda x: g(p, x), (x,), (normal(6, 8, seed=11),))
    np.testing.assert_allclose(tangent, by_groups(normal(6, 8, seed=11), p["w"]), rtol=1e-5, atol=1e-5)
    after = ja.bfloat16(jax.grad(lambda p, x: (f(p, x) * ct).sum()), lowering="bfloat16")(p, x)
    np.testing.assert_allclose(after["w"], dp["w"], rtol=1e-5, atol=1e-5)


def test_grouped_products_that_stay_are_told():
    x = normal(6, 8, seed=9)

    def left(g, *args):
        return [
            (r.path, r.lowering, r.reason) for r in traced(g, *args) if r.primitive == "ragged_dot_general"
        ]

    path = "experts/kernel"
    assert left(ja.bfloat16(experts, backend="cpu"), EXPERTS, x) == [
        (path, "-", "XLA:CPU has no bfloat16 grouped products")
    ]
    assert left(ja.bfloat16(experts, backend="gpu"), EXPERTS, x)[0][2] == ""
    assert left(ja.bfloat16(experts, keep="experts/**", backend="gpu"), EXPERTS, x)[0][2] == "kept"
    assert "matrix products alone" in left(ja.float8(experts, emulate=True), EXPERTS, x)[0][2]
    for g in (ja.fake_int8(experts), ja.int8(experts, train=True, key=jax.random.key(0)), ja.int8(experts)):
        assert left(g, EXPERTS, x) == [(path, "-", "has no form of integers")]
    q = ja.quantize(EXPERTS)
    np.testing.assert_allclose(
        ja.int8(experts)(q, x), experts(ja.params.dequantize(q), x), rtol=0.1, atol=0.1
    )
    with pytest.raises(
        ja.UserError, match="experts/kernel: materialized: ragged_dot_general has no rule for it"
    ):
        ja.int8(experts, strict=True)(q, x)


def test_what_is_moved_and_multiplied_is_no_problem():
    def f(params, x):
        x = jax.lax.while_loop(
            lambda s: s[1].sum() < 9, lambda s: (s[0], x + s[1] @ s[0]), (params["kernel"], x)
        )[1]
        w = params["kernel"].T.reshape(2, 4, 8)[1:].astype(jnp.float32) * 2.0
        return jnp.einsum("bi,tji->btj", x, w)

    assert problems(ja.int8(f, strict=True), Q, X) == []


# A product that stays as it was says why.


def test_every_product_has_a_record_with_a_reason_where_it_was_left():
    def f(params, x):
        once = x @ params["kernel"]
        exact = jnp.matmul(once, params["kernel"], precision="highest")
        integers = jnp.arange(8) @ jnp.ones((8, 8), jnp.int32)
        half = x.astype(jnp.bfloat16) @ params["kernel"].astype(jnp.bfloat16)
        return once @ exact.T, integers, half, once @ params["head"]

    params = {**W, "head": W["kernel"]}
    records = traced(ja.bfloat16(f, keep="head"), params, X)
    assert [(r.name, r.after, r.reason) for r in records] == [
        ("kernel", "bfloat16", ""),
        ("kernel#2", "float32", "asks for a higher precision"),
        ("dot_general[0]", "int32", "is int32"),
        ("kernel#3", "bfloat16", "is bfloat16 already"),
        ("dot_general[1]", "bfloat16", ""),
        ("head", "float32", "kept"),
    ]
    int8 = traced(ja.int8(f), {**Q, "head": W["kernel"]}, X)
    assert [(r.name, r.after, r.reason) for r in int8 if r.lowering == "-"] == [
        ("dot_general[0]", "int32", "no parameter is quantized"),
        ("dot_general[1]", "float32", "no parameter is quantized"),
        ("head", "float32", "not quantized"),
    ]


def test_training_in_int8_says_what_multiplies_no_parameter():
    records = traced(ja.int8(lambda p, x: x @ p["kernel"] @ x.T, train=True, key=jax.random.key(0)), W, X)
    assert [(r.after, r.reason) for r in records] == [("int8", ""), ("float32", "multiplies no parameter")]


# Patterns that match nothing.


@pytest.mark.parametrize(
    "call",
    [
        lambda: ja.bfloat16(layer, keep="**/kernell")(W, X),
        lambda: ja.float16(layer, keep=("kernel", "**/kernell"))(W, X),
        lambda: ja.float8(layer, keep="**/kernell", emulate=True)(W, X),
        lambda: ja.quantize(W, "**/kernell"),
        lambda: ja.fake_int8(layer, "**/kernell")(W, X),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(call):
    with pytest.raises(ja.UserError, match=r"\*\*/kernell' matches none .*nearest: .*kernel"):
        call()


def test_a_predicate_that_selects_nothing():
    with pytest.raises(ja.UserError, match="keep selects none of the 2 parameters: bias, kernel"):
        ja.bfloat16(layer, keep=lambda path: path == "weight")(W, X)


def layer(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"])


# Calibrated ranges.


def test_a_range_that_is_missing_is_named():
    two = {"a": W, "b": W}
    other = ja.transforms.Calibration({"a/kernel": np.float32(2)})

    def f(params, x):
        return layer(params["b"], layer(params["a"], x))

    q = ja.quantize(two)
    for t, params in (
        (ja.int8(f, calibration=other), q),
        (ja.fake_int8(f, calibration=other), two),
        (jax.jit(ja.int8(f, calibration=other)), q),
    ):
        with pytest.raises(ja.UserError, match="no range for b/kernel; did you mean a/kernel"):
            t(params, X)


def test_products_inside_shard_map_are_calibrated():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def f(params, x):
        specs = (jax.tree.map(lambda _: Spec(), params), Spec("data"))
        return jax.shard_map(layer, mesh=mesh, in_specs=specs, out_specs=Spec("data"))(params, x)

    for method in ("absmax", "percentile"):
        found, wanted = (ja.calibrate(g, W, [X, 2 * X], method=method).ranges for g in (f, layer))
        assert found.keys() == wanted.keys() and found
        np.testing.assert_allclose(*([r[name] for name in wanted] for r in (found, wanted)), rtol=1e-6)
    assert problems(ja.fake_int8(f, observe=True), W, X) == []


# Names: each site has its own, the same in every tracing.


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.middle = nnx.Embed(11, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(nnx.relu(self.middle(self.embed(tokens))))


def tied():
    return lambda model, tokens: model(tokens), Tied(nnx.Rngs(0)), [jnp.arange(n) % 11 for n in (4, 7)]


def cell():
    rnn = nnx.RNN(nnx.GRUCell(8, 8, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(rnn, nnx.Param, ...)
    f = functools.partial(lambda params, x: nnx.merge(graph, params, rest, copy=True)(x))
    return f, params, [normal(2, 5, 8), normal(4, 3, 8)]


def shared_in_every_construct():
    def loop(params, x):
        return jax.lax.while_loop(
            lambda x: layer(params, x).sum() < -1e3, functools.partial(layer, params), x
        )

    @jax.custom_vjp
    def own(params, x):
        return layer(params, x)

    own.defvjp(lambda params, x: (layer(params, x), None), lambda saved, ct: (None, ct))

    def f(params, x):
        x = layer(params, loop(params, layer(params, x)))
        x = jax.lax.cond(x.sum() > 0, layer, lambda p, x: layer(p, layer(p, x)), params, x)
        x = jax.lax.scan(lambda c, _: (jax.checkpoint(layer)(params, c), None), x, length=3)[0]
        return jax.jit(layer)(params, own(params, jax.vmap(layer, (None, 0))(params, x)))

    return f, W, [X, normal(3, 8)]


NAMED = {f.__name__: f for f in (tied, cell, shared_in_every_construct)}


@pytest.mark.parametrize("name", NAMED)
def test_names_are_unique_and_stable(name):
    f, params, batches = NAMED[name]()
    calibration = ja.calibrate(f, params, batches)
    quantized = ja.quantize(params)

    def records(t, params, *args):
        return [
            (r.name, r.path, r.lowering) for r in traced(t, params, *args) if r.primitive == "dot_general"
        ]

    seen = None
    for batch in (*batches, batches[0][:1]):
        for around in (lambda f: f, jax.jit):
            now = records(around(ja.int8(f, calibration=calibration)), quantized, batch)
            assert seen is None or now == seen
            seen = now
    names = [name for name, *_ in seen]
    assert len(set(names)) == len(names)
    static = {name for name, _, lowering in seen if lowering.startswith("static")}
    assert static and static <= set(calibration.ranges)
    for t, given in (
        (ja.int8(f), quantized),
        (ja.fake_int8(f), params),
        (ja.fake_int8(f, observe=True), params),
    ):
        assert [name for name, *_ in records(t, given, batches[0])] == names


@pytest.mark.parametrize("name", ["tied", "cell"])
def test_a_calibration_serves_training_and_inference(name):
    f, params, batches = NAMED[name]()
    calibration = ja.calibrate(f, params, batches)
    fake = ja.fake_int8(f, calibration=calibration)
    got = jax.jit(fake)(params, batches[0])
    wanted = jax.jit(ja.int8(f, calibration=calibration))(ja.quantize(params), batches[0])
    np.testing.assert_allclose(got, wanted, atol=2e-2 * float(jnp.abs(wanted).max()))
    jax.eval_shape(jax.grad(lambda params: fake(params, batches[0]).sum()), params)
