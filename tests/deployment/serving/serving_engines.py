"""Small engines, and a server around them for tests."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import numpy as np

from jaxaccel.deployment.serving.server import Server
from jaxaccel.deployment.serving.server_options import ServerOptions
from jaxaccel.deployment.serving.sources import Opened, Source
from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError


class Rows:
    """Each example becomes its sum, and three times itself; in NumPy. What it was called with is kept."""

    name = "xla"
    batches = (1, 8, 32)

    def __init__(self, columns=4, seconds=0.0, refused=None, factor=3):
        self.signature = Signature(
            (TensorSpec("x", "float32", (None, columns)),),
            (TensorSpec("sum", "float32", (None,)), TensorSpec("scaled", "float32", (None, columns))),
        )
        self.seconds, self.refused, self.factor = seconds, refused, factor
        self.counts = []
        self.gate = None

    def run(self, arrays):
        self.signature.check_inputs(arrays)
        x = arrays["x"]
        self.counts.append(len(x))
        if self.gate is not None:
            self.gate.wait(10)
        if self.seconds:
            time.sleep(self.seconds)
        if self.refused is not None and (x == self.refused).any():
            raise UserError(f"x must not be {self.refused}")
        return {"sum": x.sum(1), "scaled": np.float32(self.factor) * x}


class Echo:
    """Gives back what it takes, of any datatype."""

    name = "xla"
    batches = (1, 4)

    def __init__(self, *dtypes, shape=(None, 2)):
        self.signature = Signature(
            tuple(TensorSpec(f"in_{dtype}", dtype, shape) for dtype in dtypes),
            tuple(TensorSpec(f"out_{dtype}", dtype, shape) for dtype in dtypes),
        )

    def run(self, arrays):
        self.signature.check_inputs(arrays)
        return {name.replace("in_", "out_"): array for name, array in arrays.items()}


class Describer:
    """A predictor that says how long a text or a file is."""

    def describe(self, content, file_name):
        if not content:
            raise UserError("it is empty")
        kind = "text" if isinstance(content, str) else "file"
        return {"label": kind, "scores": {kind: 1.0}, "size": len(content), "name": file_name}


def opener(models):
    """A `Load` that finds the engines of `models` by the last part of the path."""

    def load(path, engine):
        if path.name not in models:
            raise UserError(f"{path} is no bundle")
        model = models[path.name]
        if isinstance(model, Exception):
            raise model
        return model if isinstance(model, Opened) else Opened(path.name, model)

    return load


@contextlib.contextmanager
def running(models, load=None, sources=None, wait=True, **options):
    """A server of `models`, {name: engine}, in a thread; its ports are free ones.

    Gives the `Server`. Its loop is `server.loop`.
    """
    options = ServerOptions(**{"port": 0, "grpc_port": 0, "drain_seconds": 5, **options})
    words = [Source(Path(name)) for name in models] if sources is None else sources
    started, done, found = threading.Event(), threading.Event(), {}

    async def main():
        try:
            server = found["server"] = Server(options, load or opener(models))
            server.loop, found["stop"] = asyncio.get_running_loop(), asyncio.Event()
            await server.start()
            if not wait:
                started.set()
            await server.load_models(words)
            started.set()
            await found["stop"].wait()
        except BaseException as error:
            found["error"] = error
            raise
        finally:
            await server.stop()
            started.set()

    def run():
        with contextlib.suppress(Exception):
            asyncio.run(main())
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert started.wait(30)
    if "error" in found:
        raise found["error"]
    try:
        yield found["server"]
    finally:
        if not done.is_set():
            found["server"].loop.call_soon_threadsafe(found["stop"].set)
            assert done.wait(30)
