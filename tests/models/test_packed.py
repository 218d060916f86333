"""Models on the parameters of a packed file."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.arrays import CodebookArray, LowRankArray
from jaxaccel.core.call_text import parse, render
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import abstract_variables, as_model
from jaxaccel.models.packed import packed
from jaxaccel.tasks.metrics import ACCURACY
from jaxaccel.training.function_names import NAMES
from jaxaccel.training.warm_start import load_start
from jaxaccel.transforms.params import trainable, with_trained
from jaxaccel.transforms.params.load import is_packed

FACTS = {"classes": 10, "channels": 1, "image_size": 8}
INPUTS = (jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32),)
SMALL = partial(models.ConvNet, widths=(8, 16))


@pytest.fixture(scope="module")
def dense():
    """A model, its parameters and its state."""
    model = as_model(SMALL, FACTS, INPUTS)
    return model, *jax.jit(model.init)(jax.random.key(0))


@pytest.fixture
def mixed(dense, tmp_path):
    """Some of its weights low-rank, others shared, and the file that holds them."""
    _, params, state = dense
    kernels = sorted(
        ja.params.count_multiply_adds(
            lambda p, x: dense[0].apply(p, state, x, key=jax.random.key(0), train=False)[0], params, *INPUTS
        )
    )
    thin = ja.params.share(ja.low_rank(params, rank=4, where=kernels[1]), bits=3, where=kernels[0])
    file = tmp_path / "mixed.safetensors"
    ja.params.save({"params": thin, "model_state": state}, file)
    return thin, file


def leaves(tree, kind):
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)]


def test_it_computes_what_the_dense_weights_compute(dense, mixed):
    model, _, state = dense
    thin, file = mixed
    assert leaves(thin, LowRankArray) and leaves(thin, CodebookArray)
    small = as_model(partial(packed, file=str(file), model=SMALL), FACTS, INPUTS)
    params, _ = jax.jit(small.init)(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), INPUTS[0].shape)

    def both(m, train):
        return jax.jit(lambda params: m.apply(params, state, x, key=jax.random.key(3), train=train))

    for train in (False, True):
        got, moved = both(small, train)(params)
        want, expected = both(model, train)(ja.params.dequantize(thin))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, expected)


def test_what_trains_is_plain_and_goes_back(mixed):
    thin, _ = mixed
    plain = trainable(thin)
    assert not leaves(plain, (LowRankArray, CodebookArray))
    (book,) = leaves(thin, CodebookArray)
    back = with_trained(thin, jax.tree.map(lambda x: 2 * x, plain))
    (doubled,) = leaves(back, CodebookArray)
    np.testing.assert_allclose(doubled.materialize(), 2 * book.materialize())
    assert (doubled.indices == book.indices).all()
    (low,), (twice,) = leaves(thin, LowRankArray), leaves(back, LowRankArray)
    np.testing.assert_allclose(twice.materialize(), 4 * low.materialize(), rtol=1e-5)


def test_a_thinner_file_is_a_thinner_model(dense, tmp_path):
    model, params, state = dense

    def f(both, x):
        return model.apply(both["params"], both["model_state"], x, key=jax.random.key(0), train=False)[0]

    removed = ja.remove_channels(f, {"params": params, "model_state": state}, *INPUTS, flops=0.6)
    ja.params.save(removed.params, tmp_path / "thin.safetensors")
    thin = as_model(partial(packed, file=tmp_path / "thin.safetensors", model=SMALL), FACTS, INPUTS)
    sizes = [sum(x.size for x in jax.tree.leaves(abstract_variables(m)[0])) for m in (thin, model)]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_packed_file_is_a_start(dense, tmp_path):
    model, params, state = dense
    file = tmp_path / "same.safetensors"
    ja.params.save({"params": params, "model_state": state}, file)
    assert is_packed(file)
    found = load_start(file, model, INPUTS, ACCURACY)
    assert not found.fresh and (found.weights["params/head/kernel"] == params["head"]["kernel"]).all()


def test_foreign_files(dense, tmp_path):
    model, params, state = dense
    file = tmp_path / "odd.safetensors"
    ja.params.save(params, file)
    with pytest.raises(UserError, match="holds no parameters and state"):
        packed(file, SMALL, FACTS, INPUTS)
    with pytest.raises(UserError, match="holds no model"):
        load_start(file, model, INPUTS, ACCURACY)
    ja.params.save({"params": params | {"more": jnp.ones(3)}, "model_state": state}, file)
    with pytest.raises(UserError, match="another model: params/more is only in it"):
        packed(file, SMALL, FACTS, INPUTS)
    with pytest.raises(UserError, match="another model: it has params/more, which the model lacks"):
        load_start(file, model, INPUTS, ACCURACY)
    file.write_bytes(b"nothing of the kind")
    assert not is_packed(file) and not is_packed(tmp_path / "nowhere")


def test_functions_as_arguments_survive_text():
    text = "packed(file='thin.safetensors', model=ConvNet(widths=(8, 16)))"
    made = parse(text, NAMES)
    assert made.func is packed and made.keywords["model"].func is models.ConvNet
    assert render(made, NAMES) == text
    assert parse("packed(file='x', model=resnet20)", NAMES).keywords["model"] is models.resnet20
    with pytest.raises(UserError, match="did you mean resnet"):
        parse("packed(file='x', model=resnet2)", NAMES)
    with pytest.raises(UserError, match="cannot read"):
        parse("packed(file=open('x').read())", NAMES)
