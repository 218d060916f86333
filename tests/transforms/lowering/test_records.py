"""Each lowering is one record, complete in itself."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxaccel as ja
from jaxaccel.transforms.lowering import choose
from jaxaccel.transforms.lowering.base import XLA, Lowering

ROOT = Path(ja.__file__).parent.parent


@pytest.mark.parametrize("name", choose.LOWERINGS)
def test_a_benchmark_backs_each_rule(name):
    lowering = choose.LOWERINGS[name]
    assert lowering.name == lowering.primitive.name == name
    *command, benchmark = lowering.evidence.split()[:4]
    assert command == ["python", "-m", "benchmarks"]
    assert (ROOT / "benchmarks" / "suite" / f"{benchmark}.py").is_file()


def test_a_new_one_is_one_record(monkeypatch):
    """Sums along an axis, as products with ones."""

    def multiply(params, operands, form):
        (x,) = operands
        return x @ jnp.ones(x.shape[-1], x.dtype)

    def list_forms(params, shapes):
        return [XLA, "matmul"] if tuple(params["axes"]) == (shapes[0].ndim - 1,) else [XLA]

    rule = lambda params, shapes: ("matmul", "a reason")  # noqa: E731
    record = Lowering(jax.lax.reduce_sum_p, list_forms, multiply, rule, evidence="none")
    monkeypatch.setattr(choose, "LOWERINGS", {record.name: record})
    x = jnp.ones((4, 3))
    (along,), (across,) = (jax.make_jaxpr(lambda x, axis=axis: x.sum(axis))(x).eqns for axis in (1, 0))
    assert choose.choose("reduce_sum", along.params, [x]) == ("matmul", "a reason")
    assert choose.choose("reduce_sum", across.params, [x]) == (XLA, "has no other form")
    narrow = x.astype(jnp.bfloat16)
    assert choose.choose("reduce_sum", along.params, [narrow]) == (XLA, "was not measured in bfloat16")
    for form in (XLA, "matmul"):
        assert (choose.compute("reduce_sum", along.params, [x], form) == 3).all()
    none = dataclasses.replace(record, rule=lambda params, shapes: ("another", ""))
    monkeypatch.setattr(choose, "LOWERINGS", {record.name: none})
    assert choose.choose("reduce_sum", along.params, [x])[0] == XLA
