"""Kernels on several devices: each computes its own examples, and nothing is gathered."""

import os
import subprocess
import sys

import pytest

from tests.core.kernels.reference import needs_kernels

PROGRAM = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxaccel.core import kernels
from tests.core.kernels.reference import LAYOUTS, make_operands, read_params

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
shape = dict(batch=16, channels=16, features=16, groups=1, window=(3, 3))
lhs, rhs = make_operands(np.random.default_rng(0), (12, 13), LAYOUTS[2][0], **shape)
params = read_params(lhs, rhs, window_strides=(2, 2), padding="SAME", dimension_numbers=LAYOUTS[2][0])

def differentiate(convolve):
    return jax.value_and_grad(lambda a, b: jnp.sum(jnp.tanh(convolve(a, b))), (0, 1))

ours = differentiate(lambda a, b: kernels.convolve(params, a, b))
expected = differentiate(lambda a, b: jax.lax.conv_general_dilated_p.bind(a, b, **params))(lhs, rhs)
def place(x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))

def each(a, b):
    loss, grads = ours(a, b)
    return jax.lax.psum(loss, "data"), grads

CASES = {
    "data": (ours, place(lhs, "data"), place(rhs)),
    "features": (ours, place(lhs), place(rhs, None, None, None, "data")),
    "shard_map": (
        jax.shard_map(each, mesh=mesh, in_specs=(P("data"), P()), out_specs=(P(), (P("data"), P()))),
        place(lhs, "data"), place(rhs),
    ),
}
for name, (f, *args) in CASES.items():
    compiled = jax.jit(f).lower(*args).compile()
    for g, e in zip(jax.tree.leaves(compiled(*args)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=3e-6 * np.abs(e).max())
    text = compiled.as_text()
    print(name, text.count('custom_call_target="jaxaccel_onednn'), *sorted(set(re.findall(" (all-[a-z]+)[(]", text))))
"""


@pytest.fixture(scope="module")
def lines():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


@needs_kernels
@pytest.mark.parametrize(
    ("case", "transfers"),
    # A gradient by weights is summed over all examples; one by inputs over all features, whose cotangents are gathered.
    [("data", ["all-reduce"]), ("shard_map", ["all-reduce"]), ("features", ["all-gather", "all-reduce"])],
)
def test_each_device_computes_its_own(lines, case, transfers):
    assert lines[case] == ["3", *transfers]
