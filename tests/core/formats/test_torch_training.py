"""Training checkpoints and newer kinds of tensors: the weights are found, the rest is inert.

`data/torch/{tensors,training,training5,object}.pt.gz` were written by PyTorch 2.13 (CPU), and compressed by gzip, with

    import argparse, collections, enum, pathlib
    import numpy as np, torch

    class Stage(enum.Enum): LAST = 1
    class Config(dict): pass
    class Meter:
        def __init__(self): self.history = [1.0]

    torch.manual_seed(0)
    base = torch.arange(6.0).reshape(2, 3) - 2
    attributed = torch.ones(2)
    attributed.note = "kept"
    kinds = {n: base.abs().to(getattr(torch, n)) for n in DTYPES}
    kinds |= {"complex64": torch.complex(base, base), "conjugated": torch.complex(base, base).conj(),
              "attributed": attributed, "buffer": torch.nn.Buffer(base), "parameter": torch.nn.Parameter(base)}
    kinds["parameter"].note = 1
    unread = {"sparse": base.to_sparse(), "csr": base.to_sparse_csr(), "meta": base.to("meta"),
              "quantized": torch.quantize_per_tensor(base, 0.1, 0, torch.qint8),
              "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
              "float4": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    layer = torch.nn.Linear(3, 2)
    average = torch.optim.swa_utils.AveragedModel(layer)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    training = {
        "epoch": 3, "model": layer.state_dict(), "model_ema": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(), "rng_state": torch.arange(4, dtype=torch.uint8),
        "args": argparse.Namespace(lr=0.1), "stage": Stage.LAST, "config": Config(depth=2), "meter": Meter(),
        "path": pathlib.PurePosixPath("a"), "best": np.float64(0.5), "seen": np.int64(7),
        "scores": np.arange(6, dtype=">f4").reshape(2, 3).T, "names": np.array(["a", "b"]),
        "counter": collections.Counter("aab"), "default": collections.defaultdict(list, a=[1]),
        "device": torch.device("cuda", 1), "dtype": torch.float32, "size": base.shape, "set": {1},
        "frozen": frozenset({2}), "complex": 1 + 2j, "bytes": b"a\\xff", "array": bytearray(b"b"),
        "pairs": {(0, 1): 5, 2: 6}, "history": [{"loss": 1.0}, {"loss": base[0, 0]}],
        "function": torch.nn.functional.relu}
    torch.save({"kinds": kinds, "unread": unread}, "tensors.pt")
    torch.save(training, "training.pt")
    torch.save(training, "training5.pt", pickle_protocol=5)
    torch.save({"model": layer, "epoch": 1}, "object.pt")
"""

import gzip

import hostile_files
import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES
from hostile_pickles import program, tensor, text, torch_zip

from jaxaccel.core.formats import safetensors_files, torch_files
from jaxaccel.core.formats.pickles import Opaque
from jaxaccel.errors import UserError
from jaxaccel.models.pretrained.files import read

DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
          "float8_e8m0fnu")  # fmt: skip
BASE = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


@pytest.fixture
def fixture(tmp_path):
    def unzip(name):
        content = (FIXTURES / "torch" / f"{name}.pt.gz").read_bytes()
        (tmp_path / name).write_bytes(gzip.decompress(content))
        return tmp_path / name

    return unzip


def test_newer_kinds_of_tensors(fixture):
    kinds = torch_files.read(fixture("tensors"))["kinds"]
    for name in DTYPES:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        assert kinds[name].dtype == dtype
        least = (
            2.0**-127 if name == "float8_e8m0fnu" else 0
        )  # it has no zero, and PyTorch rounds to its least number
        wanted = np.maximum(np.abs(BASE), least).astype(dtype)
        np.testing.assert_array_equal(kinds[name].astype(float), wanted.astype(float), name)
    np.testing.assert_array_equal(kinds["complex64"], BASE + 1j * BASE)
    np.testing.assert_array_equal(kinds["conjugated"], BASE - 1j * BASE)
    for name in ("buffer", "parameter"):
        np.testing.assert_array_equal(kinds[name], BASE)
    np.testing.assert_array_equal(kinds["attributed"], np.ones(2, np.float32))


def test_tensors_that_are_not_read_are_told_as_weights(fixture):
    path = fixture("tensors")
    unread = torch_files.read(path)["unread"]
    assert len(unread) == 6 and all(isinstance(value, Opaque) for value in unread.values())
    with pytest.raises(
        UserError, match=r"has unread.sparse as a sparse tensor, which is not read: save it dense"
    ):
        read(path)


@pytest.mark.parametrize("name", ["training", "training5"])
def test_a_training_checkpoint(fixture, name):
    path = fixture(name)
    content = torch_files.read(path)
    wanted = {
        "epoch": 3, "config": {"depth": 2}, "best": 0.5, "seen": 7, "counter": {"a": 2, "b": 1}, "default": {"a": [1]},
        "device": "cuda:1", "size": (2, 3), "set": [1], "frozen": [2], "complex": 1 + 2j, "bytes": b"a\xff",
        "array": b"b", "pairs": {2: 6},
    }  # fmt: skip
    assert {key: content[key] for key in wanted} == wanted
    np.testing.assert_array_equal(content["scores"], np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert content["history"] == [{"loss": 1.0}, {"loss": -2.0}]
    names = {key: value.name for key, value in content.items() if isinstance(value, Opaque)}
    assert names == {
        "args": "argparse.Namespace", "stage": "__main__.Stage", "meter": "__main__.Meter",
        "path": "pathlib.PurePosixPath", "names": "numpy.ndarray", "dtype": "torch.float32",
        "function": "torch.nn.functional.relu",
    }  # fmt: skip


def test_which_weights_are_taken(fixture):
    """The model's, although an array stands beside it; its average by name; no counters, no prefix."""
    path = fixture("training")
    content = torch_files.read(path)
    for inside, name, prefix in ((None, "model", ""), ("model_ema", "model_ema", "module.")):
        found = read(path, inside)
        assert list(found) == ["weight", "bias"]
        np.testing.assert_array_equal(found["weight"], content[name][f"{prefix}weight"])
    with pytest.raises(UserError, match="no arrays inside net; there are: model, model_ema, optimizer"):
        read(path, "net")
    with pytest.raises(UserError, match=r"its 'model' is an object of torch\.\S+Linear, which is not run"):
        read(fixture("object"))


def test_order_of_the_dictionaries(tmp_path):
    """Averages come last, what is empty does not count, and an optimizer's arrays are no weights."""

    def saved(**parts):
        content = b"\x80\x02}(" + b"".join(text(name) + value for name, value in parts.items()) + b"u."
        (tmp_path / "a").write_bytes(torch_zip(content))
        return list(read(tmp_path / "a"))

    def of(name):
        return b"}" + text(name) + tensor() + b"s"

    assert saved(ema=of("b"), state_dict=of("a")) == ["a"]
    assert saved(state_dict=b"}", ema=b"}" + text("module") + of("b") + b"s") == ["b"]
    assert saved(optimizer_state=of("m"), encoder=of("a"), decoder=of("a")) == ["encoder.a", "decoder.a"]
    assert saved(w=tensor(), optimizer=of("m")) == ["w"]


def test_float8_safetensors(tmp_path):
    dtypes = {
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    }  # fmt: skip
    for name, dtype in dtypes.items():
        values = np.asarray([1, 2, 4, 0.5], dtype)
        header = {"w": {"dtype": name, "shape": [2, 2], "data_offsets": [0, 4]}}
        (tmp_path / "a").write_bytes(hostile_files.safetensors(header, values.tobytes()))
        found = read(tmp_path / "a")["w"]
        assert found.dtype == dtype and (found.ravel() == values).all()
    (tmp_path / "a").write_bytes(hostile_files.safetensors(hostile_files.entry(dtype="F4")))
    with pytest.raises(UserError, match="holds w as F4, which is not read"):
        read(tmp_path / "a")


def test_safetensors_as_its_own_library_reads_them(tmp_path):
    from safetensors.numpy import load_file, save_file

    arrays = {f"w.{t}": np.arange(6).reshape(2, 3).astype(t) for t in "?bBhHiIlLefdF"} | {
        "e": np.zeros((0, 3)),
        "s": np.array(2.0),
    }
    save_file(arrays, tmp_path / "a", {"made": "here"})
    found, wanted = safetensors_files.read(tmp_path / "a"), load_file(tmp_path / "a")
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_weights_beside_an_attack_are_right(tmp_path):
    (tmp_path / "a").write_bytes(torch_zip(program(b"cos\nsystem\n" + text("touch canary") + b"\x85R")))
    np.testing.assert_array_equal(read(tmp_path / "a")["w"], np.zeros((2, 2)))
