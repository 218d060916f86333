"""The models of a server, by name and version: loaded, warmed up, found, replaced and unloaded (`Registry`)."""

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.serving.batching import Batcher, BatchOptions
from jaxaccel.deployment.serving.datatypes import DTYPES, NAMES, check_servable
from jaxaccel.deployment.serving.faults import BUSY, NOT_FOUND, Refusal
from jaxaccel.deployment.serving.limits import is_name, is_version
from jaxaccel.deployment.serving.logs import log_event
from jaxaccel.deployment.serving.metrics import Metrics
from jaxaccel.deployment.serving.sources import Load, Opened, Predictor, Repository, Source
from jaxaccel.deployment.serving.worker import Worker
from jaxaccel.deployment.signature import Arrays, Engine, Shapes, Signature, TensorSpec
from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True)
class Served:
    """One version of a model that answers."""

    name: str
    version: str
    engine: Engine
    batcher: Batcher
    predictor: Predictor | None

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return self.engine.signature


class Registry:
    """All models of a server. Its methods are called in one event loop; engines are opened in threads.

    Args:
      load: opens a model.
      engine: name of the engine to compute by.
      options: how requests are joined.
      repository: what clients may load.
      metrics: where batches are counted.
    """

    def __init__(
        self, load: Load, engine: EngineName, options: BatchOptions, repository: Repository, metrics: Metrics
    ) -> None:
        self._load, self._options = load, options
        self._engine: EngineName = engine
        self.repository, self._metrics = repository, metrics
        self._models: dict[str, dict[str, Served]] = {}
        self._given: dict[str, list[Source]] = {}
        self._failures: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._loader = Worker("loader")
        self.ready = False
        """Whether all models of the start have been warmed up, and the server is not about to end."""

    def find(self, name: str, version: str = "") -> Served:
        """The model of that name; without a version its newest one.

        Raises:
          Refusal: there is none.
        """
        if not self.has(name, version):
            what = f"model {name}" if is_name(name) else "such model"
            at = f" of version {version}" if is_version(version) else " of that version" if version else ""
            raise Refusal(f"there is no {what}{at} here", NOT_FOUND)
        return self._models[name][version or self.versions(name)[-1]]

    def has(self, name: str, version: str = "") -> bool:
        """Whether there is a model of that name, in that version where one is named."""
        return name in self._models and (not version or version in self._models[name])

    def find_again(self, served: Served) -> Served:
        """What answers now in the place of a model that was found before; that one itself where nothing does."""
        return self._models.get(served.name, {}).get(served.version, served)

    def all(self) -> Sequence[Served]:
        """All versions of all models."""
        return [served for versions in self._models.values() for served in versions.values()]

    def versions(self, name: str) -> list[str]:
        """Versions of a model, ascending."""
        return sorted(self._models.get(name, {}), key=int)

    async def add(self, source: Source) -> Served:
        """Opens a model of the command line, warms it up and serves it.

        Raises:
          UserError: it cannot be opened, its name is none, or its version is taken.
        """
        async with self._lock:
            opened = await self._loader.run(self._open, source)
            name = source.name or opened.name
            if not is_name(name):
                raise UserError(f"{name!r} of {source.path} cannot name a model: give another with NAME=PATH")
            taken = self._models.get(name, {})
            version = source.version or str(max(map(int, taken), default=0) + 1)
            if version in taken:
                raise UserError(f"there are two models {name}:{version}: give one another version")
            self._given.setdefault(name, []).append(dataclasses.replace(source, name=name, version=version))
            return self._put(name, version, opened)

    async def load(self, name: str) -> None:
        """Loads the versions of a model anew, then takes them into service in the place of those that served.

        Raises:
          Refusal: clients may load nothing here, there is no such model, or it cannot be opened. What served before
            goes on.
        """
        self.repository.check_open()
        async with self._lock:
            sources = self._given.get(name) or self.repository.find(name)
            try:
                opened = [await self._loader.run(self._open, source) for source in sources]
            except Exception as error:
                self._failures[name] = "it cannot be loaded; the server's log says why"
                log_event("load failed", logging.ERROR, error, model=name)
                raise Refusal(f"{name} cannot be loaded; the server's log says why") from error
            before = self._models.get(name, {})
            self._models[name] = {}
            self._failures.pop(name, None)
            for source, model in zip(sources, opened, strict=True):
                self._put(name, source.version, model)
            await self._close(before.values(), gone=before.keys() - self._models[name].keys())

    async def unload(self, name: str) -> None:
        """Takes a model out of service, once what waits for it is answered.

        Raises:
          Refusal: clients may unload nothing here, or there is no such model.
        """
        self.repository.check_open()
        async with self._lock:
            if name not in self._models:
                raise Refusal(f"model {name} is not loaded" if is_name(name) else "no such model", NOT_FOUND)
            before = self._models.pop(name)
            await self._close(before.values(), gone=before.keys())

    async def close(self) -> None:
        """Answers all that waits, and ends the threads."""
        self.ready = False
        await self._close(self.all(), gone=())
        self._loader.end()

    def index(self) -> list[dict[str, str]]:
        """What there is, as the repository API tells it: name, version, state, reason."""
        rows = [
            {"name": served.name, "version": served.version, "state": "READY", "reason": ""}
            for served in self.all()
        ]
        others = sorted({*self.repository.names(), *self._given} - self._models.keys())
        return rows + [
            {
                "name": name,
                "version": "",
                "state": "UNAVAILABLE",
                "reason": self._failures.get(name, "not loaded"),
            }
            for name in others
        ]

    def check_ready(self) -> None:
        """Checks that the server takes requests.

        Raises:
          Refusal: it is still warming up, or about to end.
        """
        if not self.ready:
            raise Refusal("the server is not ready: ask again later", BUSY)

    def _open(self, source: Source) -> Opened:
        begin = time.perf_counter()
        opened = self._load(source.path, self._engine)
        check_servable(opened.engine.signature)
        read = time.perf_counter()
        warm_up(opened, self._options.max_batch)
        log_event(
            "loaded", model=source.name or opened.name, path=source.path, engine=opened.engine.name,
            open_seconds=round(read - begin, 3), warm_up_seconds=round(time.perf_counter() - read, 3),
        )  # fmt: skip
        return opened

    def _put(self, name: str, version: str, opened: Opened) -> Served:
        def observe(requests: int, examples: int, seconds: float) -> None:
            self._metrics.count_batch(name, version, examples, seconds)
            self._metrics.set_waiting(name, version, served.batcher.waiting)

        batcher = Batcher(opened.engine, self._options, observe)
        served = Served(name, version, opened.engine, batcher, opened.predictor)
        self._models.setdefault(name, {})[version] = served
        self._metrics.set_ready(name, version, True)
        return served

    async def _close(self, models: Iterable[Served], gone: Collection[str]) -> None:
        for served in list(models):
            await served.batcher.close()
            if served.version in gone:
                self._metrics.set_ready(served.name, served.version, False)


def warm_up(opened: Opened, max_batch: int) -> None:
    """Runs an engine once in each of its sizes and shapes that can occur, so that no client waits for a compiler.

    Where a bundle does not say how long its examples are, an axis that varies has length 1. What an engine refuses is
    compiled for its first client.
    """
    engine = opened.engine
    largest = next((size for size in engine.batches if size >= max_batch), max(engine.batches, default=1))
    sizes = [size for size in engine.batches if size <= largest] or [1]
    for size, shapes in itertools.product(sizes, opened.shapes or [_shortest(engine.signature)]):
        try:
            engine.run(make_examples(engine.signature, shapes, size))
        except UserError as error:
            log_event("not warmed up", logging.WARNING, engine=engine.name, reason=str(error))
            return


def make_examples(signature: Signature, shapes: Shapes, count: int) -> Arrays:
    """So many examples of zeros, or of empty bytes, whose inputs have these shapes."""
    return {
        spec.name: _fill(spec, (count, *shape)) for spec, shape in zip(signature.inputs, shapes, strict=True)
    }


def _shortest(signature: Signature) -> Shapes:
    return tuple(tuple(n or 1 for n in spec.shape[1:]) for spec in signature.inputs)


def _fill(spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    dtype = DTYPES[NAMES[spec.dtype]]
    return np.full(shape, b"" if dtype.hasobject else 0, dtype)


def describe_tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as the protocol's metadata has them: -1 is a length that varies."""
    return [
        {"name": s.name, "datatype": NAMES[s.dtype], "shape": [-1 if n is None else n for n in s.shape]}
        for s in specs
    ]
