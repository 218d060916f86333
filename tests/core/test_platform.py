"""Which devices a program is compiled for, with and without a mesh in context, inside and outside of `jax.jit`."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxaccel.core.platform import count_devices, get_capability, get_platform
from jaxaccel.core.unattached import GPUS


def inside(f):
    """What `f` gives while a function is traced."""
    found = []
    jax.jit(lambda x: found.append(f()) or x)(jnp.ones(1))
    return found[0]


def test_without_a_mesh_it_is_the_default():
    assert get_platform() == inside(get_platform) == jax.default_backend()
    assert count_devices() == inside(count_devices) == 1


def test_a_named_backend_comes_first():
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert get_platform("tpu") == "tpu"


def test_the_mesh_in_context():
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert get_platform() == inside(get_platform) == "cpu"
        assert count_devices() == inside(count_devices) == 1


@pytest.mark.parametrize(
    "platform, expected", [("tpu", "tpu"), ("gpu", "gpu"), ("cuda", "gpu"), ("cpu", "cpu")]
)
def test_devices_that_are_not_attached(platform, expected):
    device = jax.sharding.AbstractDevice(device_kind="some", num_cores=None, platform=platform)
    mesh = AbstractMesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert inside(get_platform) == expected and inside(count_devices) == 8


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_the_capability_is_that_of_the_mesh(gpu):
    device = jax.sharding.AbstractDevice(device_kind=gpu.name, num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
    ):
        assert inside(get_capability) == gpu.capability


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="has a GPU")
def test_no_capability_is_known_without_a_gpu():
    assert get_capability() is None
