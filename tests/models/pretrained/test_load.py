"""Weights of other people's files: formats, names, fused layers, fresh heads, and what is not guessed."""

import gzip
import io
import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from flax import nnx
from safetensors.numpy import save_file

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.models.adapter import Model, as_model
from jaxaccel.models.pretrained.files import read
from jaxaccel.models.pretrained.names import differs_by_number, rank_numbers, similarity


def drawn(**shapes):
    rng = np.random.default_rng(0)
    return {
        name.replace("__", "."): rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }


@pytest.fixture
def saved(tmp_path):
    def save(arrays, kind="safetensors"):
        path = tmp_path / f"weights.{kind}"
        if kind == "npz":
            np.savez(path, **arrays)
        else:
            save_file(arrays, path)
        return path

    return save


class Encoder(nnx.Module):
    """One block under names of its own."""

    def __init__(self, width, heads, classes, rngs):
        split = (heads, width // heads)
        self.query = nnx.LinearGeneral(width, split, rngs=rngs)
        self.key = nnx.LinearGeneral(width, split, rngs=rngs)
        self.value = nnx.LinearGeneral(width, split, rngs=rngs)
        self.out = nnx.LinearGeneral(split, width, axis=(-2, -1), rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_fused_layer_is_taken_apart(saved, kind):
    arrays = drawn(
        attn__qkv__weight=(24, 8), attn__qkv__bias=(24,), attn__proj__weight=(8, 8), attn__proj__bias=(8,),
        norm__weight=(8,), norm__bias=(8,), head__weight=(5, 8), head__bias=(5,),
    )  # fmt: skip
    module = Encoder(8, 2, 5, nnx.Rngs(0))
    loaded = ja.models.load_pretrained(module, saved(arrays, kind))
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    for i, name in enumerate(("query", "key", "value")):
        w, b = arrays["attn.qkv.weight"][8 * i : 8 * i + 8], arrays["attn.qkv.bias"][8 * i : 8 * i + 8]
        np.testing.assert_allclose(getattr(module, name)(x).reshape(3, 8), x @ w.T + b, rtol=1e-5, atol=1e-5)
    heads = x.reshape(3, 2, 4)
    np.testing.assert_allclose(
        module.out(heads), x @ arrays["attn.proj.weight"].T + arrays["attn.proj.bias"], rtol=1e-5, atol=1e-5
    )
    assert not loaded.unused and "attn.proj" in loaded.report()


def bert(layers=3, width=12, inner=20):
    shapes = {"bert.embeddings.word_embeddings.weight": (30, width),
              "bert.embeddings.position_embeddings.weight": (16, width),
              "bert.embeddings.token_type_embeddings.weight": (2, width), "bert.embeddings.LayerNorm.gamma": (width,),
              "bert.embeddings.LayerNorm.beta": (width,)}  # fmt: skip
    for i in range(layers):
        for name, (out, into) in {
            "attention.self.query": (width, width), "attention.self.key": (width, width),
            "attention.self.value": (width, width), "attention.output.dense": (width, width),
            "attention.output.LayerNorm": (width, 0), "intermediate.dense": (inner, width),
            "output.dense": (width, inner), "output.LayerNorm": (width, 0),
        }.items():  # fmt: skip
            shapes[f"bert.encoder.layer.{i}.{name}.weight"] = (out, into) if into else (out,)
            shapes[f"bert.encoder.layer.{i}.{name}.bias"] = (out,)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_an_encoder_named_as_bert(saved):
    w, arrays = 12, bert()

    def block():
        dense = {"kernel": jnp.zeros((w, w)), "bias": jnp.zeros(w)}
        return {
            "attention": {name: dict(dense) for name in ("query", "key", "value", "out")},
            "norm1": {"scale": jnp.zeros(w), "bias": jnp.zeros(w)},
            "norm2": {"scale": jnp.zeros(w), "bias": jnp.zeros(w)},
            "mlp": {"up": {"kernel": jnp.zeros((w, 20)), "bias": jnp.zeros(20)},
                    "down": {"kernel": jnp.zeros((20, w)), "bias": jnp.zeros(w)}},
        }  # fmt: skip

    params = {
        "embed": {"embedding": jnp.zeros((30, w))}, "positions": {"embedding": jnp.zeros((16, w))},
        "types": {"embedding": jnp.zeros((2, w))}, "norm": {"scale": jnp.zeros(w), "bias": jnp.zeros(w)},
        "blocks": [block() for _ in range(3)],
    }  # fmt: skip
    names = {}
    for i in range(3):  # both norms of a block: which is which, names do not say
        names[f"bert.encoder.layer.{i}.attention.output.LayerNorm"] = f"blocks/{i}/norm1"
        names[f"bert.encoder.layer.{i}.output.LayerNorm"] = f"blocks/{i}/norm2"
    found = ja.models.load_pretrained((params, {}), saved(arrays), names=names).params
    for i in range(3):
        for ours, theirs in (
            ("query", "attention.self.query"), ("key", "attention.self.key"), ("value", "attention.self.value"),
            ("out", "attention.output.dense"),
        ):  # fmt: skip
            kernel = found["blocks"][i]["attention"][ours]["kernel"]
            np.testing.assert_array_equal(kernel.T, arrays[f"bert.encoder.layer.{i}.{theirs}.weight"])
        np.testing.assert_array_equal(
            found["blocks"][i]["mlp"]["down"]["kernel"].T,
            arrays[f"bert.encoder.layer.{i}.output.dense.weight"],
        )
    np.testing.assert_array_equal(found["norm"]["scale"], arrays["bert.embeddings.LayerNorm.gamma"])


def test_nothing_is_guessed(saved):
    like = ({"a": {"kernel": jnp.zeros((4, 4))}, "b": {"kernel": jnp.zeros((4, 4))}}, {})
    arrays = drawn(one__weight=(4, 4), two__weight=(4, 4))
    with pytest.raises(ja.UserError, match=r"could be .* say which, names="):
        ja.models.load_pretrained(like, saved(arrays))
    params = ja.models.load_pretrained(like, saved(arrays), names={"one": "b"}).params
    np.testing.assert_array_equal(params["b"]["kernel"].T, arrays["one.weight"])
    np.testing.assert_array_equal(params["a"]["kernel"].T, arrays["two.weight"])


def test_a_square_kernel_is_transposed_and_an_embedding_is_not(saved):
    like = ({"embed": {"embedding": jnp.zeros((4, 4))}, "head": {"kernel": jnp.zeros((4, 4))}}, {})
    arrays = drawn(embeddings__weight=(4, 4), classifier__weight=(4, 4))
    params = ja.models.load_pretrained(like, saved(arrays)).params
    np.testing.assert_array_equal(params["embed"]["embedding"], arrays["embeddings.weight"])
    np.testing.assert_array_equal(params["head"]["kernel"], arrays["classifier.weight"].T)


def small(classes):
    return as_model(models.ResNetCifar, {"depth": 8, "width": 4, "classes": classes, "channels": 3}, ())


def test_a_new_head(saved, tmp_path):
    arrays = {name: np.asarray(x) for name, x in _torch_names(small(10)).items()}
    with pytest.raises(
        ja.UserError, match=r"no weights for 1 layers.*head.*Left over in the file: linear.*fresh='head/\*\*'"
    ):
        ja.models.load_pretrained(small(3), saved(arrays))
    loaded = ja.models.load_pretrained(small(3), saved(arrays), fresh="head/**")
    assert loaded.params["head"]["kernel"].shape == (16, 3) and loaded.unused == ("linear",)
    np.testing.assert_array_equal(
        loaded.params["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1), arrays["conv1.weight"]
    )
    with pytest.raises(ja.UserError, match=r"fresh=.* matches none"):
        ja.models.load_pretrained(small(3), saved(arrays), fresh="haed/**")


def _torch_names(model):
    """The arrays of our small network under PyTorch's names and in its order of axes."""
    params, state = model.init(jax.random.key(1))
    found = {}

    def norm(name, p, s):
        found.update({f"{name}.weight": p["scale"], f"{name}.bias": p["bias"],
                      f"{name}.running_mean": s["mean"], f"{name}.running_var": s["var"],
                      f"{name}.num_batches_tracked": np.zeros((), np.int64)})  # fmt: skip

    found["conv1.weight"] = params["stem"]["conv"]["kernel"].transpose(3, 2, 0, 1)
    norm("bn1", params["stem"]["norm"], state["stem"]["norm"])
    for i in range(3):
        block, more = params["stages"][i][0], state["stages"][i][0]
        for j in (1, 2):
            found[f"layer{i + 1}.0.conv{j}.weight"] = block[f"conv{j}"]["kernel"].transpose(3, 2, 0, 1)
            norm(f"layer{i + 1}.0.bn{j}", block[f"norm{j}"], more[f"norm{j}"])
    found |= {"linear.weight": params["head"]["kernel"].T, "linear.bias": params["head"]["bias"]}
    return {name: np.ascontiguousarray(x) for name, x in found.items()}


def test_what_was_saved_comes_back_whatever_the_names(saved):
    params, state = small(10).init(jax.random.key(1))
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for prefix in ("", "module.", "model.net."):
        arrays = {prefix + name: x for name, x in _torch_names(small(10)).items()}
        loaded = ja.models.load_pretrained(small(10), saved(arrays), inputs=(shape,))
        jax.tree.map(np.testing.assert_array_equal, (loaded.params, loaded.state), (params, state))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_are_none(tmp_path, capsys):
    path = tmp_path / "a"
    with pytest.raises(ja.UserError, match="cannot be read: No such file"):
        read(path)
    path.write_bytes(b"PK\x03\x04" + b"\0" * 50)
    with pytest.raises(ja.UserError, match="is damaged"):
        read(path)
    save_file(drawn(a=(3, 3)), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ja.UserError, match="is no whole safetensors file"):
        read(path)
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps({"state_dict": {"a": Evil()}}, protocol))
        with pytest.raises(ja.UserError, match=r"refused|damaged"):
            read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", _pickled_npy())
    with pytest.raises(ja.UserError, match="of type object, which are no numbers"):
        read(path)
    assert "executed" not in capsys.readouterr().out


def _pickled_npy():
    file = io.BytesIO()
    np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    return file.getvalue()


NAMES = json.loads(gzip.decompress((FIXTURES / "torch" / "names.json.gz").read_bytes()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_sorted_names_lead_to_the_layers_that_the_file_in_order_leads_to(name, saved):
    """Names and shapes of timm and torchvision, whose state dicts load into ours and compute the same."""
    file = saved({key: np.zeros(shape, np.float32) for key, shape in NAMES[name]["arrays"].items()})
    images = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    arguments = {"classes": 1000, "channels": 3, "image_size": 96}
    model = as_model(getattr(models, name), arguments, (images,))
    loaded = ja.models.load_pretrained(model, file, inputs=(images,))
    assert {pair.source.name: pair.target.name for pair in loaded.pairs} == NAMES[name]["layers"]
    assert not loaded.unused and not loaded.fresh


def chain(first, second):
    """A model of two square matrices in the order of their use, from zeros."""

    def apply(params, state, x, *, key, train):
        return x @ params[first]["kernel"] @ params[second]["kernel"], state

    params = {name: {"kernel": jnp.zeros((4, 4))} for name in (first, second)}
    return Model(lambda key: (params, {}), apply)


def test_a_new_head_takes_nothing_from_a_guess(saved):
    like = ({"b": {"kernel": jnp.zeros((4, 4))}, "c": {"kernel": jnp.zeros((4, 4))}}, {})
    arrays = drawn(x__weight=(4, 4), y__weight=(7, 4))
    with pytest.raises(ja.UserError, match=r"x of the file could be . or . .* names="):
        ja.models.load_pretrained(like, saved(arrays), new_head=True)
    assert ja.models.load_pretrained(like, saved(arrays), new_head=True, names={"x": "c"}).fresh == (
        "b/kernel",
    )


def test_numbers_that_count_against_the_use_are_asked_about(saved):
    x = (jax.ShapeDtypeStruct((2, 4), jnp.float32),)
    theirs = drawn(a__layer0__weight=(4, 4), a__layer1__weight=(4, 4))
    with pytest.raises(ja.UserError, match=r"b_layer1 could be a\.layer1 or a\.layer0 of the file .* names="):
        ja.models.load_pretrained(chain("b_layer1", "b_layer0"), saved(theirs), inputs=x)
    ours = {f"layer{n}.weight": theirs[f"a.layer{n}.weight"] for n in (0, 1)}
    loaded = ja.models.load_pretrained(chain("layer1", "layer0"), saved(ours), inputs=x)
    assert (loaded.params["layer1"]["kernel"] == ours["layer1.weight"].T).all()  # the same name says it


def test_numbers_count_from_zero_where_there_are_several():
    names = [
        "conv1",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.1.conv1",
    ]
    assert rank_numbers(names)["layer2.1.conv1"] == "layer1.1.conv" and rank_numbers(names)["conv1"] == "conv"
    assert rank_numbers(names)["layer1.0.conv2"] == "layer0..conv1".replace("..", ".")
    assert similarity("layer0.0.norm1", "stages.0.0.bn1") > similarity("layer0.0.norm1", "stages.0.0.conv1")


def test_a_number_that_is_part_of_a_word_is_no_place():
    names = [f"blocks.{i}.mlp.fc{n}" for i in range(3) for n in (1, 2)]
    assert rank_numbers(names)["blocks.2.mlp.fc2"] == "blocks.2.mlp.fc2"
    down = "blocks.1.mlp.down"
    assert max(names, key=lambda name: similarity(name, down)) == "blocks.1.mlp.fc2"


def test_what_tells_names_apart():
    assert differs_by_number("layer1.0.bn1", "layer1.2.conv1") and differs_by_number(
        "mixed5b.pool", "mixed5c.conv"
    )
    assert not differs_by_number("layer1.0.bn1", "layer1.0.conv1") and not differs_by_number(
        "bn1", "layer1.0.bn1"
    )
    assert not differs_by_number("mixed5b.branch3x3.conv", "mixed5b.branch5x5.conv")
    assert not differs_by_number("mixed5b.branch3x3.conv", "mixed5b.branch3x1.conv")


def test_letters_count_on():
    names = ["stem", *(f"mixed{n}.branch.conv" for n in ("3a", "3b", "4a", "4b", "5a"))]
    assert [rank_numbers(names)[name] for name in names[1:]] == [f"mixed{i}.branch.conv" for i in range(5)]
