"""Runs the same networks in PyTorch and in ONNX Runtime, in a process of its own; for precision.

PyTorch, torchvision and ONNX Runtime need not be installed beside JAX. The weights are random ones of PyTorch's:
time does not depend on them.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import (  # pyright: ignore[reportMissingImports]
    quant_pre_process,
)
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import count_cores, serve, time_calls
from benchmarks.peers.torch_steps import make_mlp, make_resnet20

LIMIT = 0.3
"""Relative error above which a result is no longer that of the same network."""


class LSTM(nn.Module):
    """`networks.LSTM`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, features, batch_first=True)
        self.head = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """`networks.Encoder`."""

    def __init__(self, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).mean(1))


MAKE: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: make_resnet20((32, 32, 3)),
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "vit_s16": lambda: torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536),
    "mlp": lambda: make_mlp(1024, (28, 28, 1)),
    "lstm": lambda: LSTM(256, 10),
    "encoder": lambda: Encoder(512, 6, 8, 10),
}
Call = Callable[[], Any]


def make_calls(network: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Call]]:
    """Yields (name, what runs the network once) for inputs of `shape`, in JAX's order of axes."""
    torch.manual_seed(0)
    model = MAKE[network]().eval()
    x = torch.randn(shape)
    x = x.permute(0, 3, 1, 2).contiguous() if len(shape) == 4 else x
    yield "PyTorch", _eager(model, x)
    if len(shape) == 4 and network != "mlp":
        last = MAKE[network]().eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        yield "PyTorch, channels last", _eager(last, x.to(memory_format=torch.channels_last))
        yield "PyTorch bfloat16", _eager(last, x.to(memory_format=torch.channels_last), narrow=True)
    else:
        yield "PyTorch bfloat16", _eager(model, x, narrow=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(model, (x,), file, input_names=["x"], dynamo=True, verbose=False)
        inputs = x.numpy()
        float32 = _session(file)
        yield "ONNX Runtime float32", lambda: float32.run(None, {"x": inputs})
        quantized = _quantize(file, shape=inputs.shape, dynamic=network == "lstm")
        int8 = _session(quantized)
        want, got = float32.run(None, {"x": inputs})[0], int8.run(None, {"x": inputs})[0]
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        if error > LIMIT:
            raise ValueError(f"{network}: ONNX Runtime's int8 is off by {error:.1%}")
        yield "ONNX Runtime int8", lambda: int8.run(None, {"x": inputs})


def _eager(model: nn.Module, x: torch.Tensor, narrow: bool = False) -> Call:
    def call() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return model(x)

    return call


def _session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    # Else the next contender pays for threads that go on spinning.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class _Random(CalibrationDataReader):
    """A few batches of inputs."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(1)
        self._batches = iter([{"x": rng.standard_normal(shape, np.float32)} for _ in range(3)])

    def get_next(self) -> Any:
        """Gives the next one, or None."""
        return next(self._batches, None)


def _quantize(file: Path, shape: tuple[int, ...], dynamic: bool) -> Path:
    """Quantizes statically, in QDQ form, one scale a channel of the weights; an LSTM can only be dynamic."""
    ready, out = file.with_name("ready.onnx"), file.with_name("int8.onnx")
    quant_pre_process(file, ready)
    if dynamic:
        quantize_dynamic(ready, out, per_channel=True, weight_type=QuantType.QInt8)
    else:
        quantize_static(
            ready, out, _Random(shape), per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
    return out


class Session:
    """The forms of one network."""

    def __init__(self) -> None:
        torch.set_num_threads(count_cores())
        warnings.simplefilter("ignore")
        self._ready: dict[str, Call] = {}

    def answer(self, command: dict[str, Any]) -> Any:
        """Makes all forms of a network, or runs one of them."""
        if "network" not in command:
            return time_calls(self._ready[command["name"]], command["steps"])
        self._ready = dict(make_calls(command["network"], tuple(command["shape"])))
        versions = {m.__name__: m.__version__ for m in (torch, torchvision, onnxruntime)}
        return {"names": list(self._ready), "versions": versions}


if __name__ == "__main__":
    serve(Session().answer)
