"""An axis of the mesh that splits nothing is an error, and what it leaves whole is told."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from jaxaccel import models
from jaxaccel.distributed import check_split
from jaxaccel.distributed.mesh import AXES
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import abstract_variables, as_model


def mesh(data=1, fsdp=1, model=1):
    return AbstractMesh((data, fsdp, model), AXES)


def params(factory, size=224):
    inputs = (jax.ShapeDtypeStruct((2, size, size, 3), "float32"),)
    return abstract_variables(
        as_model(factory, {"classes": 1000, "channels": 3, "image_size": size}, inputs)
    )[0]


@pytest.fixture(scope="module")
def vit():
    return params(models.vit_s16)


def test_heads_that_do_not_divide_are_told(vit):
    lines = check_split(vit, mesh(model=4))
    assert any(
        "blocks/*/attention/query/kernel whole (12 arrays, 6.8 MiB): 6 heads do not divide by 4" in x
        for x in lines
    )
    assert not any("/mlp/" in line for line in lines)
    assert not any("/attention/" in line for line in check_split(vit, mesh(model=2)))


def test_what_divides_is_silent(vit):
    assert check_split(vit, mesh(data=8)) == check_split(vit, mesh(fsdp=8)) == []


@pytest.mark.parametrize("sizes", [{"model": 2}, {"fsdp": 7}])
def test_an_axis_that_splits_nothing_is_an_error(sizes):
    (name, count), *_ = sizes.items()
    with pytest.raises(UserError) as caught:
        check_split(params(models.resnet50), mesh(**sizes))
    said = caught.value.as_flags()
    assert said.startswith(
        f"--mesh.{name} {count} splits 0.0% of the parameters, so that all {count} devices would"
    )


def test_a_users_own_names_are_not_known_to_tensor_parallelism():
    own = {"encoder": {"weight": jnp.zeros((64, 64))}}
    with pytest.raises(UserError, match="splits attention, mlp, dense and hidden layers only"):
        check_split(own, mesh(model=2))


def test_1_percent_is_enough():
    """99 of 100 parts whole: told, not refused."""
    tree = {"mlp": {"up": {"kernel": jnp.zeros((128, 80))}}, "other": jnp.zeros((1024, 900))}
    (line,) = check_split(tree, mesh(model=2))
    assert "other whole (3.5 MiB)" in line


def test_small_arrays_stay_whole_under_fsdp_on_purpose():
    assert check_split({"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}, mesh(fsdp=2)) == []
