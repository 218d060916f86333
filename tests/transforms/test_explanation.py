"""explain: every site, what was done, why not, and what the compiled program has of it."""

import importlib
import json

import jax
import jax.numpy as jnp
import pytest

import jaxaccel as ja
from jaxaccel.transforms.explain import COLUMNS

explain_module = importlib.import_module("jaxaccel.transforms.explain")
NHWC = ("NHWC", "HWIO", "NHWC")
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "stem": {"kernel": jax.random.normal(KEYS[0], (3, 3, 3, 32))},
    "conv": {"kernel": jax.random.normal(KEYS[1], (3, 3, 32, 64))},
    "layers": {"kernel": jax.random.normal(KEYS[2], (3, 64, 64))},
    "head": {"kernel": jax.random.normal(KEYS[3], (64, 10))},
}
X = jnp.ones((4, 16, 16, 3))


def f(params, x):
    for name in ("stem", "conv"):
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
        )
    x = x.mean((1, 2))
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"]["kernel"])
    return x @ params["head"]["kernel"]


def test_every_site_in_order_with_its_flops():
    rows = ja.explain(ja.int8(f, backend="cpu"), ja.quantize(PARAMS), X).rows
    assert [row["path"] for row in rows] == ["stem/kernel", "conv/kernel", "layers/kernel", "head/kernel"]
    pixels = 4 * 16 * 16
    assert [row["flops"] for row in rows] == [
        2 * pixels * 9 * 3 * 32, 2 * pixels * 9 * 32 * 64, 3 * 2 * 4 * 64 * 64, 2 * 4 * 64 * 10,
    ]  # fmt: skip
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["after"] for row in rows] == ["float32", "int8", "int8", "int8"]
    assert "too few" in rows[0]["reason"]


def test_it_is_read_as_a_table_json_html_and_data_frame():
    explained = ja.explain(ja.int8(f), ja.quantize(PARAMS), X)
    text = str(explained)
    assert "conv/kernel" in text and "float32 -> int8" in text and "4x16x16x32 * 3x3x32x64" in text
    assert [row["site"] for row in json.loads(explained.to_json())] == [row["site"] for row in explained.rows]
    assert "<pre" in explained._repr_html_()
    pandas = pytest.importorskip("pandas")
    frame = explained.to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == list(COLUMNS)


def test_transformations_inside_each_other_are_told_apart():
    rows = ja.explain(ja.bfloat16(ja.int8(f, backend="cpu"), backend="cpu"), ja.quantize(PARAMS), X).rows
    assert [row["transformation"] for row in rows] == ["int8"] * 4 + ["bfloat16"] * 4
    outer = rows[4:]
    assert "no bfloat16 convolutions" in outer[0]["reason"]
    assert [row["reason"] for row in outer[1:]] == ["is int8", "is int8 already", "is int8 already"]


def test_gradients_are_sites_too():
    gradient = jax.grad(lambda p, x: f(p, x).sum())
    rows = ja.explain(ja.bfloat16(gradient, lowering="bfloat16"), PARAMS, X).rows
    assert len(rows) == 4 + 4 + 3  # forward; each weight; each input but the first one's
    assert all(row["after"] == "bfloat16" for row in rows)


def test_nothing_is_computed_and_shapes_do():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ja.quantize(PARAMS))
    rows = ja.explain(ja.int8(f), shapes, jax.ShapeDtypeStruct(X.shape, X.dtype)).rows
    assert len(rows) == 4


def test_a_jitted_function_that_ran_before_is_explained():
    g, q = jax.jit(ja.int8(f)), ja.quantize(PARAMS)
    g(q, X)
    assert len(ja.explain(g, q, X).rows) == 4


def test_the_compiled_program_tells_what_landed():
    rows = ja.explain(ja.int8(f, backend="cpu"), ja.quantize(PARAMS), X, compiled=True).rows
    if jax.default_backend() != "cpu":
        pytest.skip("what XLA:CPU makes of it")
    assert rows[0]["compiled"] == ["f32 x f32 -> f32"] or "f32 x f32" in rows[0]["compiled"][0]
    assert "s8 x s8 -> s32" in rows[1]["compiled"][0] and "ynn" in rows[1]["compiled"][0]
    assert "compiled" in str(ja.explain(ja.int8(f), ja.quantize(PARAMS), X, compiled=True))


def test_unknown_turns_have_unknown_flops():
    def g(params, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ params["w"], x)

    (row,) = ja.explain(ja.bfloat16(g), {"w": jnp.ones((4, 4))}, jnp.ones((2, 4))).rows
    assert row["flops"] is None


def test_a_function_without_transformations_is_an_error():
    with pytest.raises(ja.UserError, match="nothing to explain"):
        ja.explain(f, PARAMS, X)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"devices": "h100", "compiled": False}, "devices= compiles for them: leave compiled=False out"),
        ({"devices": "h100:8"}, "explain compiles for one device: write h100, not h100:8"),
        ({"devices": "h101"}, "no device 'h101': choose one of h200, h100"),
        ({"devices": 3}, "devices must be text, got 3"),
        ({"compiled": "yes"}, "compiled must be True or False"),
    ],
)
def test_devices_that_cannot_be_compiled_for(options, says):
    with pytest.raises(ja.UserError, match=says):
        ja.explain(ja.int8(f), ja.quantize(PARAMS), X, **options)


def test_devices_compile_for_a_mesh_of_one(monkeypatch):
    monkeypatch.setattr(explain_module, "find_devices", lambda name: jax.devices()[:1])
    meshes = []

    def g(params, x):
        meshes.append(jax.sharding.get_abstract_mesh().size)
        return f(params, x)

    explained = ja.explain(ja.int8(g, backend="cpu"), ja.quantize(PARAMS), X, devices="here")
    assert set(meshes) == {1}
    assert all(row["compiled"] for row in explained.rows)
    assert json.loads(explained.to_json()) == json.loads(json.dumps(explained.rows))
    assert "compiled" in str(explained) and " x " in explained._repr_html_()
