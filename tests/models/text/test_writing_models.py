"""Models that write token by token: steps equal the whole, nothing leaks from the padding, all transformations hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_writers import (
    SMALL_WRITERS,
    VOCABULARY,
    WRITERS,
    draw,
    fill_up,
    shapes_of,
    small_writer,
    start,
)

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.paths import flatten_by_path
from jaxaccel.distributed.sharding import rule_of
from jaxaccel.models.adapter import abstract_variables, as_model, inference, output_shape
from jaxaccel.models.layers.counts import count_parameters
from jaxaccel.models.layers.decoder import sinusoids
from jaxaccel.tasks.decoding import decode_greedily, search_beams
from jaxaccel.transforms.params import masked, prune

BEGIN, END, PAD, LENGTH = 1, 2, 0, 8
SOURCES, TARGETS = (6, 1, 4), (7, 8, 2)
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def inputs_of(kind, source_length=6, target_length=LENGTH, rows=slice(None)):
    """Inputs of a call: sources and previous tokens of several lengths, with garbage behind their ends."""
    previous, _ = fill_up(draw(TARGETS, seed=3)[rows], target_length, seed=target_length)
    if kind == "language_model":
        return (previous,)
    return *fill_up(draw(SOURCES)[rows], source_length, seed=source_length), previous


def run_steps(call, variables, inputs):
    """Logits (B, T, vocabulary) step by step."""
    *sources, previous = inputs
    rows, length = previous.shape

    def step(cache, token):
        logits, cache = call(variables, token, cache, method="step")
        return cache, logits

    _, logits = jax.lax.scan(step, start(call, variables, sources, length, rows), previous.T)
    return logits.swapaxes(0, 1)


def there(logits):
    """Of positions that have a token."""
    return np.concatenate([np.asarray(row[:n]) for row, n in zip(logits, TARGETS, strict=True)])


@pytest.mark.parametrize("kind", SMALL_WRITERS)
def test_steps_equal_the_whole(kind):
    model, variables = small_writer(kind)
    call, inputs = inference(model), inputs_of(kind)
    whole = fast_jit(call)(variables, *inputs)
    assert (whole.shape, whole.dtype) == ((3, LENGTH, VOCABULARY), jnp.float32)
    assert np.ptp(there(whole), axis=0).min() > 0.1
    steps = fast_jit(functools.partial(run_steps, call))(variables, inputs)
    np.testing.assert_allclose(there(steps), there(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL_WRITERS)
def test_rows_of_a_cache_can_be_taken_and_repeated(kind):
    model, variables = small_writer(kind)
    call, inputs = inference(model), inputs_of(kind)
    *sources, previous = inputs
    cache = start(call, variables, sources, LENGTH, 3)
    assert {x.shape[0] for x in jax.tree.leaves(cache)} == {3}
    assert (cache.position.shape, cache.position.dtype) == ((3,), jnp.int32)
    step = fast_jit(lambda token, cache: call(variables, token, cache, method="step"))
    logits, once = step(previous[:, 0], cache)
    again, _ = step(previous[:, 1], once)
    # Rows of other positions side by side: the second token of row 0, the first and the second of row 2.
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[2], a[2]]), once, cache)
    found, after = step(jnp.stack([previous[0, 1], previous[2, 0], previous[2, 1]]), mixed)
    np.testing.assert_allclose(found, jnp.stack([again[0], logits[2], again[2]]), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after.position, [2, 1, 2])


@pytest.mark.parametrize("kind", SMALL_WRITERS)
def test_nothing_leaks(kind):
    model, variables = small_writer(kind)
    call = inference(model)
    row = 2 if kind != "language_model" else 0

    @fast_jit
    def differentiate(params, inputs, weigh):
        def loss(params):
            logits = call(variables | {"params": params}, *inputs)
            counts = jnp.arange(logits.shape[1]) < jnp.asarray(TARGETS)[row]
            return (weigh[:, None] * jnp.where(counts, jnp.sin(logits).sum(-1), 0)).sum(), logits

        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradients

    one = inputs_of(kind, SOURCES[row], TARGETS[row], slice(row, row + 1))
    alone, gradients = differentiate(variables["params"], one, jnp.ones(1))
    among, weighed = differentiate(variables["params"], inputs_of(kind, 11, 13), jax.nn.one_hot(row, 3))
    short = call(variables, *inputs_of(kind))
    for found in (among, short):
        np.testing.assert_allclose(found[row, : TARGETS[row]], alone[0], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), weighed, gradients)
    assert np.abs(alone).max() > 1e-2 and all(np.isfinite(x).all() for x in jax.tree.leaves(weighed))


def uncached_beams(call, variables, sources, limit, beam, alpha):
    """[(score, tokens)] of one row, with a call of the whole model for each hypothesis and no cache."""
    whole = fast_jit(call)

    def chances(tokens):
        previous = np.zeros((1, LENGTH + 1), np.int32)
        previous[0, : len(tokens) + 1] = [BEGIN, *tokens]
        return np.asarray(
            jax.nn.log_softmax(whole(variables, *sources, previous)[0, len(tokens)]), np.float64
        )

    live, finished = [(0.0, [])], []
    for number in range(limit):
        longer = [(s + c, tokens, i) for s, tokens in live for i, c in enumerate(chances(tokens))]
        longer.sort(key=lambda x: -x[0])
        penalty = ((6 + number) / 6) ** alpha
        finished += [(s / penalty, tokens) for s, tokens, i in longer[:beam] if i == END]
        live = [(s, [*tokens, i]) for s, tokens, i in longer[: 2 * beam] if i != END][:beam]
        finished += [(s / penalty, tokens) for s, tokens in live if number + 1 == limit]
        finished = sorted(finished, key=lambda x: -x[0])[:beam]
    return finished


@pytest.mark.parametrize("kind", SMALL_WRITERS)
def test_decoding_equals_that_without_a_cache(kind):
    model, variables = small_writer(kind)
    # An end that comes before the limit.
    table = variables["params"]["embed"]["embedding"]
    variables["params"]["embed"]["embedding"] = table.at[END].mul(1.5)
    call, limit = inference(model), jnp.asarray([8, 5, 8])
    sources = inputs_of(kind, 9)[:-1]

    @fast_jit
    def decode(variables, sources):
        rows = jnp.full(3, BEGIN, jnp.int32)
        cache = start(call, variables, sources, LENGTH, 3)
        step = functools.partial(call, variables, method="step")
        greedy = decode_greedily(step, cache, rows, END, LENGTH, PAD, limit)
        return greedy, search_beams(step, cache, rows, END, LENGTH, PAD, 3, 0.6, limit)

    greedy, beams = decode(variables, sources)
    for row in range(3):
        one = tuple(x[row : row + 1, : SOURCES[row]] for x in sources)
        want = uncached_beams(call, variables, one, int(limit[row]), 3, 0.6)
        got = [x[: int(n)].tolist() for x, n in zip(beams.tokens[row], beams.lengths[row], strict=True)]
        assert got == [tokens for _, tokens in want]
        np.testing.assert_allclose(beams.scores[row], [x[0] for x in want], rtol=1e-4, atol=1e-5)
        ((score, tokens),) = uncached_beams(call, variables, one, int(limit[row]), 1, 0.0)
        assert greedy.tokens[row, : int(greedy.lengths[row])].tolist() == tokens
        np.testing.assert_allclose(greedy.scores[row], score, rtol=1e-4, atol=1e-5)


TRANSFORMATIONS = {
    "bfloat16": (ja.bfloat16, lambda p: p),
    "int8": (ja.int8, ja.quantize),
    "int8_weights": (functools.partial(ja.int8, activations="none"), ja.quantize),
    "low_rank": (ja.transforms.compressed, functools.partial(ja.low_rank, rank=3)),
    "pruned": (ja.transforms.compressed, lambda p: masked(p, prune(p, 0.5))),
    "retarget": (ja.retarget, lambda p: p),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("kind", SMALL_WRITERS)
def test_transformations_hold_for_methods(kind, name):
    transformation, change = TRANSFORMATIONS[name]
    model, variables = small_writer(kind)
    call, inputs = inference(model), inputs_of(kind)

    def f(params, *inputs, **method):
        return call(variables | {"params": params}, *inputs, **method)

    params, run = change(variables["params"]), transformation(f)
    steps = there(fast_jit(functools.partial(run_steps, run))(params, inputs))
    whole, plain = (there(fast_jit(g)(p, *inputs)) for g, p in ((run, params), (f, variables["params"])))
    size = np.abs(plain - plain.mean(0)).max()
    # Activations are rounded by the range of each batch, and a step is another batch than the whole.
    bound = {"int8": 0.15, "bfloat16": 0.04}.get(name, 1e-4)
    assert np.abs(steps - whole).max() < bound * size
    changed = np.abs(steps - plain).max() / size
    limit = {"bfloat16": 0.05, "int8": 0.2, "int8_weights": 0.1, "retarget": 1e-4}.get(name, 3)
    assert changed < limit and (changed > 1e-4) == (name != "retarget")


def test_static_int8_holds_for_methods():
    model, variables = small_writer("translator")
    call, inputs = inference(model), inputs_of("translator")
    ranges = ja.calibrate(call, variables, [inputs])
    run = ja.int8(call, activations="static", calibration=ranges)
    plain = there(call(variables, *inputs))
    steps = there(fast_jit(functools.partial(run_steps, run))(ja.quantize(variables), inputs))
    assert 1e-4 < np.abs(steps - plain).max() < 0.3 * np.abs(plain - plain.mean(0)).max()


@pytest.mark.parametrize("kind", SMALL_WRITERS)
def test_every_parameter_learns(kind):
    model, variables = small_writer(kind, dropout=0.2)
    inputs = inputs_of(kind)

    def loss(params, key):
        logits, _ = model.apply(params, variables["model_state"], *inputs, key=key, train=True)
        return there_sum(jnp.sin(logits))

    def there_sum(x):
        return jnp.where((jnp.arange(LENGTH) < jnp.asarray(TARGETS)[:, None])[..., None], x, 0).sum()

    run = fast_jit(jax.value_and_grad(loss))
    (one, gradients), (other, _) = (run(variables["params"], jax.random.key(i)) for i in (0, 1))
    assert one != other, "dropout"
    for path, x in flatten_by_path(gradients).items():
        assert np.isfinite(x).all()
        # A softmax leaves out what is added to all its scores.
        assert x.any() or path.endswith("key/bias"), path


@pytest.mark.parametrize("name", WRITERS)
def test_size(name):
    width, kernels = WRITERS[name]
    factory = getattr(models, name)
    rest = count_parameters(nnx.eval_shape(lambda: factory(vocabulary=1000, rngs=nnx.Rngs(0)))) - 1000 * width
    assert kernels < rest < 1.02 * kernels
    assert f"{width} * vocabulary + {rest:,} parameters" in factory.__doc__


@pytest.mark.parametrize("name", WRITERS)
def test_the_trainer_can_make_and_call_it(name):
    kind = name if name.startswith("language") else "translator"
    facts = {"vocabulary": 100, "pad": 0, "begin": 1, "end": 2, "max_length": 24}
    factory = functools.partial(getattr(models, name), dropout=0.5)
    out = output_shape(as_model(factory, facts, shapes_of(kind)), shapes_of(kind))
    assert (out.shape, out.dtype) == ((2, 5, 100), jnp.float32)


def test_tensor_parallelism_knows_the_paths():
    model = as_model(models.translator_tiny, {"vocabulary": 100}, shapes_of("translator"))
    shapes = flatten_by_path(abstract_variables(model)[0])
    counted = {path: rule.counts for path in shapes if (rule := rule_of(path))}
    for part in ("encoder/0/attention", "decoder/3/attention", "decoder/3/cross_attention"):
        assert {counted[f"{part}/{name}/kernel"] for name in ("query", "key", "value", "out")} == {"heads"}
        assert shapes[f"{part}/query/kernel"].shape == (128, 4, 32)
    assert (
        counted["decoder/3/mlp/up/kernel"] == "outputs" and counted["encoder/0/mlp/down/kernel"] == "inputs"
    )
    whole = {path for path in shapes if path not in counted}
    assert all("norm" in path or path == "embed/embedding" for path in whole)


def test_sinusoids():
    found = sinusoids(jnp.arange(5), 6)
    angles = np.arange(5)[:, None] / 10_000 ** (np.arange(3) / 3)
    np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (models.translator_tiny, {"heads": 3}, "width=128 must be even and a multiple of heads=3"),
        (models.translator_tiny, {"depth": 0}, "depth=0 and hidden=256 must be at least 1"),
        (models.translator_tiny, {"dropout": 1.0}, "dropout=1.0 must be in"),
        (models.attention_gru, {"features": 0}, "features=0 and depth=1 must be at least 1"),
        (
            models.language_model_tiny,
            {"width": 12, "heads": 4},
            "width=12 must be a multiple of twice heads=4",
        ),
        (models.language_model_tiny, {"depth": 0}, "depth=0 must be at least 1"),
    ],
)
def test_bad_arguments(factory, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        nnx.eval_shape(lambda: factory(**options, vocabulary=9, rngs=nnx.Rngs(0)))
    assert "\n" not in str(caught.value)


def test_a_mistyped_option_of_a_preset_is_told():
    with pytest.raises(ja.UserError, match="unexpected keyword argument 'layers'"):
        as_model(
            functools.partial(models.translator_tiny, layers=3), {"vocabulary": 9}, shapes_of("translator")
        )
