"""What every transformation promises, in one suite: signature, shapes, dtypes and values, in any nesting with JAX."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from grids import thinned
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as Spec

import jaxaccel as ja
from jaxaccel.core import sites

# LLVM's optimizations are most of the compile time and see nothing that differs.
OPTIONS = {"xla_backend_optimization_level": 0}
N = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """A transformation, and what must hold of a function that it was applied to."""

    transform: Any
    after: str
    """What the record of a site says it became."""
    operands: tuple[str, ...]
    """The types that its products have in StableHLO."""
    tolerance: float
    """Relative error in the 2-norm; derivatives may have three times as much."""
    quantized: bool = False
    """Whether it takes quantized parameters."""
    calibrated: bool = False
    derivative: float = 3
    """How many times the error a derivative may have."""


# Every product is narrowed, also those that the CPU is better off without.
NARROW = {name: functools.partial(getattr(ja, name), lowering=name) for name in ("bfloat16", "float16")}
INT8 = functools.partial(ja.int8, lowering="int8")
CASES = {
    "bfloat16": Case(NARROW["bfloat16"], "bfloat16", ("bf16",), 0.02),
    "float16": Case(NARROW["float16"], "float16", ("f16",), 0.003),
    "float8": Case(functools.partial(ja.float8, emulate=True), "float8", ("f8E4M3FN", "f8E5M2"), 0.12),
    "int8": Case(INT8, "int8", ("i8",), 0.04, quantized=True),
    "int8_static": Case(INT8, "int8", ("i8",), 0.06, quantized=True, calibrated=True),
    "int8_weights": Case(
        functools.partial(ja.int8, activations="none"), "int8", ("f32",), 0.03, quantized=True
    ),
    "fake_int8": Case(functools.partial(ja.fake_int8, where="**/w*"), "int8", ("f32",), 0.04),
    "int8_train": Case(functools.partial(ja.int8, train=True, key=jax.random.key(5)), "int8", ("i8",), 0.04),
}
PRECISIONS = ("bfloat16", "float16", "float8")


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


PARAMS = {
    "w1": normal(N, N, scale=N**-0.5),
    "b": normal(N, seed=1),
    "w2": normal(N, N, seed=2, scale=N**-0.5),
}
STACKED = {
    "w1": normal(3, N, N, scale=N**-0.5),
    "b": normal(3, N, seed=1),
    "w2": normal(3, N, N, seed=2, scale=N**-0.5),
}
X = normal(6, N, seed=3)
XS = normal(3, 6, N, seed=4)
IMAGES = normal(3, 6, 6, 8, seed=7)
MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))


def layer(params, x):
    return jnp.tanh(x @ params["w1"] + params["b"]) @ params["w2"]


def loss(f):
    return lambda params, x: jnp.sum(f(params, x) ** 2)


# A construct makes a function of (params, x) from one: it stands inside a transformation as well as around it.


def with_aux(f):
    def loss_and_aux(params, x):
        out = f(params, x)
        return jnp.sum(out**2), {"out": out, "steps": jnp.int32(3)}

    return jax.value_and_grad(loss_and_aux, argnums=1, has_aux=True)


def while_loop(f):
    def looped(params, x):
        def more(state):
            return state["i"] < 3

        def step(state):
            return {"i": state["i"] + 1, "x": f(params, state["x"])}

        return jax.lax.while_loop(more, step, {"i": jnp.int32(0), "x": x})

    return looped


def product_in_the_test(f):
    def looped(params, x):
        def step(state):
            return state[0] + 1, f(params, state[1])

        return jax.lax.while_loop(lambda s: (s[0] < 2) & (jnp.sum(f(params, s[1])) < 1e6), step, (0, x))

    return looped


def weights_in_the_carry(f):
    def scanned(params, x):
        def step(carry, _):
            return {"params": carry["params"], "x": f(carry["params"], carry["x"])}, carry["x"].sum()

        carry, sums = jax.lax.scan(step, {"params": params, "x": x}, None, length=3)
        return carry["x"], sums

    return scanned


def custom_jvp(f):
    @jax.custom_jvp
    def own(params, x):
        return f(params, x)

    @own.defjvp
    def _(primals, tangents):
        return f(*primals), 0.5 * jax.jvp(f, primals, tangents)[1]

    return own


def custom_vjp(f):
    @jax.custom_vjp
    def own(params, x):
        return f(params, x)

    def backward(saved, ct):
        return jax.tree.map(lambda g: 0.5 * g, jax.vjp(f, *saved)[1](ct))

    own.defvjp(lambda params, x: (f(params, x), (params, x)), backward)
    return own


def shard_map(f):
    def sharded(params, x):
        specs = (jax.tree.map(lambda _: Spec(), params), Spec("data"))
        return jax.shard_map(f, mesh=MESH, in_specs=specs, out_specs=Spec("data"))(params, x)

    return sharded


def remat_in_scan_in_vmap(f):
    def one(params, x):
        return jax.lax.scan(lambda c, _: (jax.checkpoint(f)(params, c), c.sum()), x, None, length=2)

    return lambda params, x: jax.vmap(one, (None, 0))(params, jnp.stack([x, 2 * x]))


def jit_in_cond_in_scan(f):
    def step(params, c, x):
        return jax.lax.cond(
            x.sum() > 0, jax.jit(f), lambda params, c: jax.jit(f)(params, 2 * c), params, c
        ), x

    return lambda params, x: jax.lax.scan(functools.partial(step, params), x, XS)


VALUES = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda params, x: jax.vmap(f, (None, 0))(params, jnp.stack([x, 2 * x])),
    "vmap_of_rows": lambda f: jax.vmap(f, (None, 0)),
    "vmap_of_params": lambda f: jax.vmap(f, (0, None)),
    "scan": lambda f: lambda params, x: jax.lax.scan(lambda c, x: (f(params, c) + x, c.sum()), x, XS),
    "scan_reverse": lambda f: (
        lambda params, x: jax.lax.scan(lambda c, x: (f(params, c) + x, c), x, XS, reverse=True, unroll=2)
    ),
    "scan_carry": weights_in_the_carry,
    "scan_xs": lambda f: lambda params, x: jax.lax.scan(lambda c, params: (f(params, c), c.sum()), x, params),
    "map": lambda f: lambda params, x: jax.lax.map(functools.partial(f, params), XS),
    "while": while_loop,
    "while_test": product_in_the_test,
    "fori": lambda f: lambda params, x: jax.lax.fori_loop(0, 3, lambda i, c: f(params, c) + i, x),
    "cond": lambda f: lambda params, x: jax.lax.cond(x.sum() > 0, f, lambda p, x: 2 * f(p, x), params, x),
    "switch": lambda f: (
        lambda params, x: jax.lax.switch(
            jnp.int32(x.sum()) % 3, [f, lambda p, x: x, lambda p, x: 2 * f(p, -x)], params, x
        )
    ),
    "vmapped_cond": lambda f: (
        lambda params, x: jax.vmap(lambda r: jax.lax.cond(r.sum() > 0, f, lambda p, x: -f(p, x), params, r))(
            x.reshape(3, 2, N)
        )
    ),
    "remat": jax.checkpoint,
    "remat_saving_dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
    "shard_map": shard_map,
    "remat_in_scan_in_vmap": remat_in_scan_in_vmap,
    "jit_in_cond_in_scan": jit_in_cond_in_scan,
}  # fmt: skip
"""Constructs without a derivative."""

IN_X = {
    "grad": lambda f: jax.grad(loss(f), argnums=1),
    "value_and_grad": with_aux,
    "jvp": lambda f: lambda params, x: jax.jvp(functools.partial(f, params), (x,), (jnp.cos(x),)),
    "linearize": lambda f: lambda params, x: jax.linearize(functools.partial(f, params), x)[1](jnp.cos(x)),
    "jacobian": lambda f: lambda params, x: jax.jacfwd(lambda x: f(params, x).sum(0))(x[:2]),
    "vmap_of_grad": lambda f: lambda params, x: jax.vmap(jax.grad(loss(f), 1), (None, 0))(params, x),
    "grad_of_scan": lambda f: jax.grad(lambda params, x: VALUES["scan"](f)(params, x)[0].sum(), argnums=1),
}  # fmt: skip
"""Derivatives in x alone, which quantized parameters allow as well."""

IN_PARAMS = {
    **{f"grad_of_{name}": lambda f, name=name: jax.grad(
        lambda params, x: sum(jnp.sum(y * y) for y in jax.tree.leaves(VALUES[name](f)(params, x))), argnums=(0, 1)
      ) for name in (
        *("plain", "jit", "vmap", "scan_carry", "scan_xs", "cond", "remat", "remat_saving_dots", "custom_jvp"),
        *("custom_vjp", "shard_map", "remat_in_scan_in_vmap", "jit_in_cond_in_scan"),
    )},
    "jvp_in_params": lambda f: lambda params, x: jax.jvp(f, (params, x), (jax.tree.map(jnp.cos, params), x)),
    "jvp_of_while": lambda f: lambda params, x: jax.jvp(
        lambda params: while_loop(f)(params, x)["x"], (params,), (jax.tree.map(jnp.cos, params),)
    ),
}  # fmt: skip
"""Constructs that need parameters of real numbers."""

CONSTRUCTS = {**VALUES, **IN_X, **IN_PARAMS}


def params_of(construct):
    return STACKED if construct.endswith(("scan_xs", "vmap_of_params")) else PARAMS


@functools.cache
def expected(construct):
    return jax.jit(CONSTRUCTS[construct](layer), compiler_options=OPTIONS)(params_of(construct), X)


def quantized(params):
    return ja.quantize(params, "w*", channels=lambda _, shape: (0, 2) if len(shape) == 3 else (1,))


def dot_operands(text):
    """The element types of every pair of operands of a matrix product in StableHLO."""
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<(.*?)>, tensor<(.*?)>\)", text)
    return [tuple(shape.rsplit("x", 1)[-1] for shape in pair) for pair in found]


def assert_close(got, wanted, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= tolerance, error


def run(g, *args):
    """(result, what was recorded, operand types of its products) of `g` compiled."""
    with sites.record_runs() as runs:
        lowered = jax.jit(g, compiler_options=OPTIONS).lower(*args)
    return lowered.compile()(*args), runs, dot_operands(lowered.as_text())


@functools.cache
def ranges(construct):
    f = layer if construct is None else CONSTRUCTS[construct](layer)
    examples = [(XS[0],), (3 * X,)]
    return ja.calibrate(f, PARAMS if construct is None else params_of(construct), examples)


def check(name, construct, place):
    case, params = CASES[name], params_of(construct)
    options = {}
    if case.calibrated:
        # Ranges are known by the site of the function that they were seen in.
        options["calibration"] = ranges(construct if place == "inside" else None)
    t = functools.partial(case.transform, **options)
    f = CONSTRUCTS[construct]
    got, runs, operands = run(
        t(f(layer)) if place == "inside" else f(t(layer)), quantized(params) if case.quantized else params, X
    )
    derivative = construct not in VALUES
    assert_close(got, expected(construct), case.tolerance * (case.derivative if derivative else 1))
    products = [r for run in runs for r in run.records if r.kind == "site" and r.primitive == "dot_general"]
    assert sum(r.after == case.after for r in products) >= 2
    narrow = [set(pair) <= set(case.operands) for pair in operands]
    assert sum(narrow) >= 2
    if name in PRECISIONS:
        assert all(narrow) and all(r.after == case.after for r in products)


SOME = (
    "plain",
    "vmap",
    "scan",
    "scan_xs",
    "while",
    "switch",
    "custom_vjp",
    "shard_map",
    "grad",
    "grad_of_scan_carry",
)
"""What is enough for a transformation that goes the way of another: float16 as bfloat16, static as dynamic."""


def reaches(name, construct, place):
    """Whether a transformation is meant to reach a product there; where not, it says so (`test_silence`)."""
    if construct == "vmapped_cond" and place == "inside":  # the parameters become selections of copies
        return name in PRECISIONS
    if (name, construct, place) == ("int8_static", "shard_map", "inside"):  # ranges inside it are not seen
        return False
    if construct in VALUES:
        return True
    if name in ("int8", "int8_static"):  # activations are rounded, whose derivative is 0
        return construct in IN_X and place == "inside"
    if name == "int8_weights":
        return construct in IN_X
    # The straight-through gradient is made by differentiating the result.
    return name != "fake_int8" or construct in IN_X or place == "outside"


def checked(name, construct, place):
    enough = construct in SOME or name not in ("float16", "int8_static", "int8_weights")
    return enough and reaches(name, construct, place)


# Of bfloat16, float8 and int8_train, which reach all there is, each diagonal has one: the order of CASES matters.
CHECKS = [check for check in thinned(3, CASES, CONSTRUCTS, ("inside", "outside")) if checked(*check.values)]


@pytest.mark.parametrize(("name", "construct", "place"), CHECKS)
def test_in_any_nesting(name, construct, place):
    check(name, construct, place)


def test_the_straight_through_gradient_of_what_is_in_range_is_exact():
    x = normal(4, N)
    f = ja.fake_int8(lambda params, x: x @ params["w1"], "w1")
    got = jax.grad(lambda x: f({"w1": jnp.eye(N)}, x).sum())(x)
    np.testing.assert_allclose(got, np.ones_like(got), rtol=1e-5)


# Rematerialization keeps what its policy says.


def products(jaxpr):
    """How many matrix products a jaxpr makes, however they are computed."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    own = sum(eqn.primitive.name in ("dot_general", "bilinear") for eqn in inner.eqns)
    below = [
        x
        for eqn in inner.eqns
        for value in eqn.params.values()
        for x in (value if isinstance(value, (tuple, list)) else [value])
        if isinstance(x, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))
    ]
    return own + sum(map(products, below))


@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"])
@pytest.mark.parametrize("place", ["inside", "outside", "around"])
def test_a_policy_of_remat_means_the_product_however_it_is_computed(place, policy):
    policy = getattr(jax.checkpoint_policies, policy)

    def gradient(t_inside, t_outside, t_around):
        f = t_outside(jax.checkpoint(t_inside(lambda params, x: jnp.sin(layer(params, x))), policy=policy))
        return products(jax.make_jaxpr(t_around(jax.grad(loss(f))))(PARAMS, X))

    same = [lambda f: f] * 3
    chosen = list(same)
    chosen[["outside", "inside", "around"].index(place)] = ja.bfloat16
    assert gradient(*chosen) == gradient(*same)


# Transformations of each other.

PAIRS = {
    "bfloat16 of int8": (ja.bfloat16, "int8", {"i8"}),
    "int8 of bfloat16": ("int8", ja.bfloat16, {"i8"}),
    "bfloat16 of weights": (ja.bfloat16, "int8_weights", {"bf16"}),
    "weights of bfloat16": ("int8_weights", ja.bfloat16, {"bf16", "f32"}),
    "float16 of int8": (ja.float16, "int8", {"i8"}),
    "bfloat16 of float16": (ja.bfloat16, ja.float16, {"f16"}),
    "bfloat16 of fake_int8": (ja.bfloat16, "fake_int8", {"bf16"}),
    "fake_int8 of bfloat16": ("fake_int8", ja.bfloat16, {"bf16"}),
    "bfloat16 of int8_train": (ja.bfloat16, "int8_train", {"i8"}),
    "int8_train of bfloat16": ("int8_train", ja.bfloat16, {"bf16"}),
    "int8_weights of int8_train": ("int8_weights", "int8_train", {"i8"}),
}


@pytest.mark.parametrize("construct", ["plain", "scan", "vmap_of_grad"])
@pytest.mark.parametrize("pair", PAIRS)
def test_each_other(pair, construct):
    *transformations, types = PAIRS[pair]
    outer, inner = (CASES[t].transform if isinstance(t, str) else t for t in transformations)
    quantize = any(isinstance(t, str) and CASES[t].quantized for t in transformations)
    f = CONSTRUCTS[construct](layer)
    got, _, operands = run(outer(inner(f)), quantized(PARAMS) if quantize else PARAMS, X)
    assert_close(got, expected(construct), 0.12)
    assert {x for pair in operands for x in pair} <= types


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_gradient_is_the_same_transformed_before_or_after(name):
    t = CASES[name].transform
    before, _, operands = run(jax.grad(loss(t(layer))), PARAMS, X)
    after, _, same = run(t(jax.grad(loss(layer))), PARAMS, X)
    assert_close(before, after, 1e-6 if name != "float8" else 0.12)
    assert sorted(operands) == sorted(same) or name == "float8"


# One small model in every framework.


def plain():
    params = {
        "conv": {"kernel": normal(3, 3, 8, 32, scale=0.1)},
        "head": {"kernel": normal(32, 5, seed=1, scale=0.2), "bias": normal(5, seed=2)},
    }

    def apply(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]

    return apply, params, "**/kernel", -1


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.head = nnx.Conv(8, 32, (3, 3), rngs=rngs), nnx.Linear(32, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))


def nnx_split():
    graph, params = nnx.split(NnxNet(nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x), params, "**/kernel", -1


def nnx_module():
    return lambda model, x: model(x), NnxNet(nnx.Rngs(0)), "**/kernel", -1


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(5)(linen.relu(linen.Conv(32, (3, 3))(x)).mean((1, 2)))


def linen_apply():
    model = LinenNet()
    return model.apply, jax.jit(model.init)(jax.random.key(0), IMAGES), "**/kernel", -1


def haiku_transform():
    haiku = pytest.importorskip("haiku")

    def net(x):
        return haiku.Linear(5)(jax.nn.relu(haiku.Conv2D(32, 3)(x)).mean((1, 2)))

    net = haiku.without_apply_rng(haiku.transform(net))
    return net.apply, jax.jit(net.init)(jax.random.key(0), IMAGES), "**/w", -1


def equinox_module():
    equinox = pytest.importorskip("equinox")

    class Net(equinox.Module):
        conv: equinox.nn.Conv2d
        head: equinox.nn.Linear
        activation: Any = jax.nn.relu

        def __call__(self, x):
            return self.head(self.activation(self.conv(x.transpose(2, 0, 1))).mean((1, 2)))

    keys = jax.random.split(jax.random.key(0))
    model = Net(equinox.nn.Conv2d(8, 32, 3, padding=1, key=keys[0]), equinox.nn.Linear(32, 5, key=keys[1]))
    return lambda model, x: jax.vmap(model)(x), model, "**/weight", 0


FRAMEWORKS = {
    f.__name__: f for f in (plain, nnx_split, nnx_module, linen_apply, haiku_transform, equinox_module)
}


@functools.cache
def built(framework):
    return FRAMEWORKS[framework]()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", CASES)
def test_frameworks(name, framework):
    case = CASES[name]
    apply, params, where, channels = built(framework)
    options = {"where": where, "channels": channels} if name == "fake_int8" else {}
    if case.calibrated:
        options["calibration"] = ja.calibrate(apply, params, [(IMAGES,)])
    given = ja.quantize(params, where, channels=channels) if case.quantized else params
    t = functools.partial(case.transform, strict=True, **options)
    wanted = jax.jit(lambda x: apply(params, x), compiler_options=OPTIONS)(IMAGES)
    with sites.record_runs() as runs:
        if framework == "equinox_module":  # it holds functions, which `jax.jit` does not take
            got = jax.jit(lambda x: t(apply)(given, x), compiler_options=OPTIONS)(IMAGES)
        else:
            got = jax.jit(t(apply), compiler_options=OPTIONS)(given, IMAGES)
    assert_close([got], [wanted], 3 * case.tolerance)
    records = [r for r in runs[0].records if r.kind == "site"]
    changed = [r for r in records if r.after == case.after]
    # Float8 is for matrix products alone.
    assert len(records) == 2 and len(changed) == (1 if name == "float8" else 2)
    assert all(r.reason for r in records if r.after == "float32")
    assert all(r.path for r in changed)


@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if name != "equinox_module"])
def test_gradients_in_frameworks(framework):
    apply, params, *_ = built(framework)

    def gradient(f):
        return jax.jit(jax.grad(lambda params: jnp.sum(f(params, IMAGES) ** 2)), compiler_options=OPTIONS)(
            params
        )

    assert_close(jax.tree.leaves(gradient(ja.bfloat16(apply))), jax.tree.leaves(gradient(apply)), 0.06)


def test_gradients_of_an_equinox_module():
    equinox = pytest.importorskip("equinox")
    apply, model, *_ = built("equinox_module")

    def gradient(f):
        return equinox.filter_jit(equinox.filter_grad(lambda model: jnp.sum(f(model, IMAGES) ** 2)))(model)

    assert_close(jax.tree.leaves(gradient(ja.bfloat16(apply))), jax.tree.leaves(gradient(apply)), 0.06)


# Signatures.


@pytest.mark.parametrize("name", CASES)
def test_arguments_by_keyword_and_by_position_and_results_of_any_kind(name):
    case = CASES[name]
    if case.calibrated:
        pytest.skip("as int8")

    def f(params, x, flag, *, scale=1.0):
        assert flag is True
        return {
            "y": layer(params, x) * scale,
            "params": params["b"],
            "none": None,
            "i": jnp.arange(3),
            "n": 2,
        }

    given = quantized(PARAMS) if case.quantized else PARAMS
    wanted = f(PARAMS, X, True, scale=2.0)
    got = case.transform(f)(given, X, True, scale=2.0)
    assert got["n"] == 2 and got["none"] is None
    assert_close(jax.tree.map(jnp.asarray, got), jax.tree.map(jnp.asarray, wanted), case.tolerance)


def test_parameters_may_be_any_arguments():
    def f(x, w, more):
        return x @ w @ more["kernel"]

    q = ja.quantize({"w": PARAMS["w1"], "more": {"kernel": PARAMS["w2"]}}, "**")
    with sites.record_runs() as runs:
        got = ja.int8(f, argnums=(1, 2))(X, q["w"], more=q["more"])
    assert_close(got, f(X, PARAMS["w1"], {"kernel": PARAMS["w2"]}), 0.04)
    assert [(r.path, r.after) for r in runs[0].records] == [("w", "int8"), ("kernel", "int8")]
