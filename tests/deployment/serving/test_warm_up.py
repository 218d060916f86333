"""What a model is run on before it is ready."""

import numpy as np

from jaxaccel.deployment.serving.registry import warm_up
from jaxaccel.deployment.serving.sources import Opened
from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError


class Texts:
    """Takes texts of two lengths, as programs of `jax.export` do; keeps what it was called with."""

    name = "xla"
    batches = (1, 4, 16)
    signature = Signature(
        (TensorSpec("token", "int32", (None, None)), TensorSpec("length", "int32", (None,))),
        (TensorSpec("logits", "float32", (None, 2)),),
    )

    def __init__(self):
        self.seen = []

    def run(self, arrays):
        count = self.signature.check_inputs(arrays)
        length = arrays["token"].shape[1]
        if length not in (16, 32):
            raise UserError(f"no program takes {length} tokens")
        self.seen.append((count, length))
        return {"logits": np.zeros((count, 2), np.float32)}


def test_every_length_is_compiled_before_the_first_client():
    engine = Texts()
    warm_up(Opened("texts", engine, None, [((16,), ()), ((32,), ())]), max_batch=4)
    assert engine.seen == [(1, 16), (1, 32), (4, 16), (4, 32)]


def test_an_engine_that_refuses_the_shortest_examples_is_served_all_the_same():
    engine = Texts()
    warm_up(Opened("texts", engine), max_batch=4)
    assert engine.seen == []
