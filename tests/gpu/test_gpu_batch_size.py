"""The largest batch of a ResNet-50 on an H100, by XLA's compiler for GPUs. No GPU is needed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.core.unattached import GPUS, find_devices, find_gpu_compiler
from jaxaccel.distributed import make_mesh
from jaxaccel.training import batch_size
from jaxaccel.training.problem import Problem
from jaxaccel.training.run_setup import set_up_run

pytestmark = [
    pytest.mark.slow,  # a program of a ResNet-50 compiles for a minute
    pytest.mark.skipif(
        not find_gpu_compiler(),
        reason="XLA's compiler for GPUs is not installed: pip install 'jaxaccel[cuda]'",
    ),
]


def test_the_batch_of_a_resnet50_fills_an_h100():
    images = np.zeros((2048, 224, 224, 3), np.uint8)
    labels = np.arange(2048) % 10
    name = ja.data.from_arrays(
        {"image": images, "label": labels}, test={"image": images[:10], "label": labels[:10]}
    )
    shipped = ja.load_recipe("imagenet_resnet50")
    recipe = dataclasses.replace(shipped, batch_size="auto", data=ja.training.Data(name=name, feed="stream"))
    mesh = make_mesh(recipe.mesh, find_devices("h100"))
    first = batch_size.begin_batch_size(recipe, mesh, Path("nowhere"), resume=False)
    setup = set_up_run(Problem(first), mesh, Path("nowhere"))
    room = 0.75 * GPUS["h100"].memory * (1 - batch_size.RESERVE)
    chosen, line = batch_size.choose_batch_size(setup, limit=room)
    assert chosen.recipe.batch_size == 512
    assert line.startswith("batch size 512: the largest power of two whose step fits (")
    larger = set_up_run(setup.problem.with_batch_size(1024), mesh, setup.directory)
    assert batch_size.count_bytes(chosen) <= room < batch_size.count_bytes(larger)
