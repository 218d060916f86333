"""PyTorch checkpoints are read without PyTorch, exactly, and run nothing.

`data/torch/kinds_*` were written by PyTorch 2.13 (CPU) on a little-endian machine with

    import numpy as np, torch

    torch.manual_seed(0)
    base, whole = torch.randn(4, 6), torch.arange(24).reshape(2, 3, 4)
    tensors = {"float": base, "half": base.half(), "bfloat16": base.bfloat16(), "double": base.double(),
               "int64": whole, "int32": whole.int(), "int16": whole.short(), "int8": whole.char(),
               "uint8": whole.byte(), "bool": base > 0, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3),
               "transposed": base.T, "strided": whole[1:, ::2, 1::2], "offset": base[2],
               "expanded": torch.ones(1, 3).expand(5, 3),
               "window": torch.arange(6.0).as_strided((4, 3), (1, 1)), "parameter": torch.nn.Parameter(base.T[1:])}
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    content = {"tensors": tensors, "state_dict": layers.state_dict(),
               "epoch": 7, "best": 0.5, "name": "ä", "large": 2**70,
               "nested": {"list": [base, (1, None, True)], 3: {"again": base}, "shape": base.shape}}
    for name, new in (("kinds_zip.pt", True), ("kinds_legacy.pt", False)):
        torch.save(content, name, _use_new_zipfile_serialization=new)
    plain = {f"{part}/{k}": v.float() if v.dtype == torch.bfloat16 else v
             for part in ("tensors", "state_dict") for k, v in content[part].items()}
    np.savez_compressed("kinds.npz", **{k: v.detach().numpy() for k, v in plain.items()})
"""

import copyreg
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES

from jaxaccel.core.formats import torch_files
from jaxaccel.core.formats.pickles import Opaque
from jaxaccel.errors import UserError

TORCH = FIXTURES / "torch"
KINDS = [TORCH / "kinds_zip.pt", TORCH / "kinds_legacy.pt"]
HEADER = b"".join(
    pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)
ARGUMENTS = {"storage": "torch.FloatStorage", "numbers": 4, "offset": 0, "shape": (2, 2), "strides": (2, 1)}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(value):
    return b"c" + "\n".join(value.rsplit(".", 1)).encode() + b"\n"


def literal(value):
    """The operations that push `value`: pickled, without PROTO and STOP, and nothing memoized."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(literal, value)) + b"t"
    return text(value) if isinstance(value, str) else pickle.dumps(value, protocol=2)[2:-1]


def tensor(function="_rebuild_tensor_v2", rest=(False, None), **changes):
    """The operations that push a tensor of 2x2 zeros, with some of its ARGUMENTS changed."""
    a = ARGUMENTS | changes
    pid = a.get("pid") or ("storage", name(a["storage"]), "0", "cpu", a["numbers"])
    call = (literal(pid) + b"Q", a["offset"], a["shape"], a["strides"], *rest)
    return name(f"torch._utils.{function}") + literal(call) + b"R"


def checkpoint(value, key="x", protocol=2):
    """The pickle of {`key`: what the operations `value` push}."""
    return bytes([0x80, protocol]) + b"}(" + literal(key) + value + b"u."


def write(path, content, numbers=b"\0" * 16, itemsize=4):
    """`content` as the pickle of a checkpoint, with storage 0 if it has one; zipped or not, as the suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/data/0", numbers)
    else:
        size = struct.pack("<q", len(numbers) // itemsize)
        stored = pickle.dumps(["0"], protocol=2) + size + numbers if b"tQ" in content else pickle.dumps([])
        path.write_bytes(HEADER + content + stored)
    return path


def refused(path):
    with pytest.raises(UserError) as caught:
        torch_files.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 250
    return message


@pytest.fixture(params=[".zip", ".old"])
def path(request, tmp_path):
    return tmp_path / f"checkpoint{request.param}"


@pytest.mark.parametrize("path", KINDS, ids=["zip", "legacy"])
def test_every_kind_of_tensor(path):
    content = torch_files.read(path)
    dtypes = {"half": np.float16, "bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
    with np.load(TORCH / "kinds.npz") as expected:
        found = [f"{part}/{key}" for part in ("tensors", "state_dict") for key in content[part]]
        assert found == list(expected)
        for where in expected:
            part, key = where.split("/")
            value = content[part][key]
            np.testing.assert_array_equal(value.astype(expected[where].dtype), expected[where], where)
            assert value.dtype == dtypes.get(key, expected[where].dtype)
            assert value.shape == expected[where].shape
            assert value.flags.c_contiguous and value.flags.writeable and value.flags.owndata
    assert type(content["state_dict"]) is dict  # with an attribute, _metadata, in the file
    rest = {key: content[key] for key in ("epoch", "best", "name", "large")}
    assert rest == {"epoch": 7, "best": 0.5, "name": "ä", "large": 2**70}
    nested = content["nested"]
    assert nested["list"][1] == (1, None, True)
    assert nested["shape"] == (4, 6)
    assert nested["list"][0] is nested[3]["again"] is content["tensors"]["float"]


def test_copies_share_nothing():
    tensors = torch_files.read(KINDS[0])["tensors"]
    row = tensors["float"][2].copy()
    tensors["float"][:] = 0
    np.testing.assert_array_equal(tensors["offset"], row)


def test_hand_written_checkpoints_are_read(path):
    """The ground of the tests below: without the attack, such a file is fine."""
    for function, rest in (("_rebuild_tensor_v2", (False, name("collections.OrderedDict") + b")R")),
                           ("_rebuild_tensor", ())):  # fmt: skip
        content = torch_files.read(write(path, checkpoint(tensor(function, rest))))
        np.testing.assert_array_equal(content["x"], np.zeros((2, 2), np.float32))
    pairs = b"](](" + text("a") + b"K\x01e](" + text("b") + b"K\x02ee"  # as Python 2 wrote them
    content = torch_files.read(write(path, checkpoint(name("collections.OrderedDict") + pairs + b"\x85R")))
    assert content == {"x": {"a": 1, "b": 2}}


def test_bools_are_zero_or_one(path):
    content = checkpoint(tensor(storage="torch.BoolStorage", numbers=4))
    value = torch_files.read(write(path, content, b"\0\1\2\xff", itemsize=1))["x"]
    np.testing.assert_array_equal(value.view(np.uint8), [[0, 1], [1, 1]])


def attacks(command):
    """(what the message must name, operations): ways to run `command`, as pickle would."""
    system, shell = f"{os.system.__module__}.system", text(command)
    module = os.system.__module__
    evaluated = text(f"__import__('os').system({command!r})")
    ordered = name("collections.OrderedDict")
    return {
        "system": (system, name(system) + shell + b"\x85R"),
        "eval": ("builtins.eval", name("builtins.eval") + evaluated + b"\x85R"),
        "getattr": ("builtins.getattr", name("builtins.getattr") + ordered + text("x") + b"\x86R"),
        "memo": ("POP", name(system) + b"q\x070h\x07" + shell + b"\x85R"),
        "names from memo": (system, text(module) + b"q\x08" + b"\x85" + text("system") + b"q\x09"
                            + b"\x86h\x08h\x09\x93" + shell + b"\x85R\x86"),
        "inst": ("INST", b"(" + shell + b"i" + system.replace(".", "\n").encode() + b"\n"),
        "obj": ("OBJ", b"(" + name(system) + shell + b"o"),
        "obj of an allowed class": ("OBJ", b"(" + ordered + b"o"),
        "newobj": (system, name(system) + shell + b"\x85\x81"),
        "newobj_ex": (system, name(system) + shell + b"\x85}\x92"),
        "call of a call": ("builtins.getattr", name("builtins.getattr") + ordered + text("x") + b"\x86R"
                           + shell + b"\x85R"),
        "state": (system, name(system) + b")R}" + text("__setstate__") + name(system) + b"sb"),
        "extension": ("EXT1", b"\x82\xf0" + shell + b"\x85R"),
        "part of an allowed name": ("collections.OrderedDict.__init__",
                                    text("collections") + text("OrderedDict.__init__") + b"\x93"),
        "not quite": ("torch.FloatStorageX", name("torch.FloatStorageX")),
        "torch itself": ("torch.load", name("torch.load") + shell + b"\x85R"),
        "unprintable": (r"sys\\x1b.tem", text("posix\nsys\x1b") + text("tem") + b"\x93"),
        "persistent text": ("PERSID", b"Pposix.system\n"),
        "buffer": ("NEXT_BUFFER", b"\x97"),
        "a module": ("module with its program", literal(("module", "Net", "net.py", "source")) + b"Q"),
    }  # fmt: skip


@pytest.mark.parametrize("attack", attacks("true"))
def test_nothing_is_run(attack, path, monkeypatch):
    """What is unknown is kept by name alone; operations that no checkpoint needs are refused."""
    trace = path.with_name("trace")
    named, operations = attacks(f"touch {trace}")[attack]
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, (os.system.__module__, "system"))
    write(path, checkpoint(operations, protocol=4))
    try:
        value = torch_files.read(path)["x"]
    except UserError:
        assert named in refused(path)
    else:
        value = value[1] if isinstance(value, tuple) else value
        assert isinstance(value, Opaque) and named in repr(value) and repr(value).isprintable()
    assert not trace.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="touch")
@pytest.mark.parametrize("attack", ["system", "eval", "names from memo", "inst", "obj", "extension"])
def test_the_attacks_are_real(attack, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, (os.system.__module__, "system"))
    pickle.loads(checkpoint(attacks(f"touch {trace}")[attack][1], protocol=4))
    assert trace.exists()


@pytest.mark.parametrize("part", range(5))
def test_every_pickle_of_a_legacy_file_is_watched(part, tmp_path):
    trace = tmp_path / "trace"
    _, operations = attacks(f"touch {trace}")["system"]
    pickles = [
        pickle.dumps(value, protocol=2)
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
    ]
    pickles[part] = b"\x80\x02" + operations + b"."
    (tmp_path / "a.pt").write_bytes(b"".join(pickles))
    assert any(words in refused(tmp_path / "a.pt") for words in (".system", "damaged", "big-endian"))
    assert not trace.exists()


def test_attributes_change_nothing(path):
    """BUILD on dictionaries is left out, on all else refused: nothing of ours can be altered."""
    ordered, state = name("collections.OrderedDict"), b"}" + text("__setstate__") + name("torch.Size") + b"s"
    content = checkpoint(ordered + b")R" + state + b"b}" + text("y") + b"K\x01sb")
    assert torch_files.read(write(path, content)) == {"x": {}}
    for target in (ordered, name("torch.Size"), tensor(), b"]", text("a"), b"N"):
        message = refused(write(path, checkpoint(target + b"N}" + text("__call__") + b"K\x01s\x86b")))
        assert "attributes of something else" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (-2, 2)}, "wrong size"),
        ({"strides": (-1, 1)}, "wrong size"),
        ({"offset": -1}, "wrong size"),
        ({"offset": 1}, "beyond its storage"),
        ({"strides": (3, 1)}, "beyond its storage"),
        ({"shape": (2, 3)}, "beyond its storage"),
        ({"shape": (1 << 50, 1)}, "wrong size"),
        ({"shape": (1 << 47, 1), "strides": (0, 0)}, "many times as large"),
        ({"shape": (1 << 15,) * 4, "strides": (0,) * 4}, "many times as large"),
        ({"shape": (0, 1 << 47, 1 << 47), "strides": (0, 0, 0)}, "damaged"),
        ({"shape": (1,) * 40, "strides": (0,) * 40}, "wrong rank"),
        ({"shape": (2, 2, 1)}, "wrong rank"),
        ({"shape": (2.0, 2)}, "wrong size"),
        ({"shape": (True, 2)}, "wrong size"),
        ({"shape": "22"}, "without a shape"),
        ({"numbers": 5}, "another size"),
        ({"numbers": -4}, "wrong size"),
        ({"storage": "torch.DoubleStorage"}, "another size|damaged"),
        ({"storage": "torch.Size"}, "wrong type"),
        ({"pid": ("storage", "torch.FloatStorage", "0", "cpu", 4)}, "wrong type"),
        ({"pid": ("storage", name("torch.FloatStorage"), "1", "cpu", 4)}, "damaged"),
        ({"pid": ("storage", name("torch.FloatStorage"), "../data.pkl", "cpu", 4)}, "damaged"),
        ({"pid": ("storage", name("torch.FloatStorage"), "0", "cpu", 4, ("1", 0, 2))}, "before 0.4"),
        ({"pid": "storage"}, "wrong storage"),
        ({"rest": ()}, ""),
        ({"function": "_rebuild_parameter"}, "parameter without a tensor"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be(changes, said, path):
    write(path, checkpoint(tensor(**changes)))
    if not said:  # also v2 with fewer arguments is a tensor
        assert torch_files.read(path)["x"].shape == (2, 2)
        return
    assert any(words in refused(path) for words in said.split("|"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"})R", "no function"),
        (name("torch.Size") + b"K\x03R", "without arguments"),
        (name("torch.Size") + b"K\x03\x85R", "wrong torch.Size"),
        (name("collections.OrderedDict") + text("ab") + b"\x85R", "something else than pairs"),
        (b"]q\x05h\x05a", "one in itself"),
        (b"]" * 200 + b"a" * 199, "nests more than"),
        (name("torch.Size") + b")" * 17 + b"t", "damaged"),
        (name("torch.Size") + b"(" + b")" * 17 + b"tR", "too many arguments"),
        (b"h\x63", "damaged"),
        (b"aaaaaa", "damaged"),
    ],
)  # fmt: skip
def test_pickles_that_make_no_sense(value, said, path):
    assert said in refused(write(path, checkpoint(value)))


def test_containers_in_one_another_cost_nothing(path):
    """Forty lists, each holding the one before twice: 2**40 if they were copied one by one."""
    doubled = b"]q\x00" + b"".join(b"]q%ch%ch%c\x86" % (i + 1, i, i) + b"a" for i in range(40))
    nested = torch_files.read(write(path, checkpoint(b"(" + doubled + b"t")))["x"][-1]
    assert nested[0][0] is nested[0][1]


def test_the_top_is_a_dictionary_of_names(path):
    for content in (b"\x80\x02].", b"\x80\x02" + tensor() + b".", checkpoint(b"N", key=3)):
        assert "no dictionary of names" in refused(write(path, content))


def test_other_archives(tmp_path):
    path = tmp_path / "a.pt"
    for names, compression, said in (
        (["archive/data.pkl"], zipfile.ZIP_DEFLATED, "compressed"),
        (["a/data.pkl", "b/data.pkl"], zipfile.ZIP_STORED, "without data.pkl"),
        (["data.pkl"], zipfile.ZIP_STORED, "without data.pkl"),
        (["archive/data.pkl", "archive/constants.pkl"], zipfile.ZIP_STORED, "TorchScript"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for entry in names:
                archive.writestr(entry, checkpoint(b"N"))
        assert said in refused(path)


def test_big_endian_files_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    little = KINDS[1].read_bytes()
    path.write_bytes(little.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    assert path.read_bytes() != little
    assert "big-endian" in refused(path)
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(KINDS[0]) as original:
        for entry in original.namelist():
            content = b"big" if entry.endswith("/byteorder") else original.read(entry)
            archive.writestr(entry, content)
    assert "big-endian" in refused(path)


def test_what_is_no_checkpoint(tmp_path):
    assert "No such file" in refused(tmp_path / "missing.pt")
    assert "cannot be read" in refused(tmp_path)
    path = tmp_path / "a.pt"
    for content in (
        b"",
        b"PK\x03\x04",
        b"<!doctype html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x02N.",
    ):
        path.write_bytes(content)
        assert "was not written by torch.save" in refused(path)


@pytest.mark.parametrize("source", KINDS, ids=["zip", "legacy"])
def test_damaged_files(source, tmp_path):
    """Cut anywhere, it is an error; with wrong bytes it is an error or a dictionary, and never anything else."""
    path, whole, rng = tmp_path / "a.pt", source.read_bytes(), random.Random(0)
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        refused(path)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(torch_files.read(path), dict)
        except UserError as error:
            assert str(error).isprintable()


def test_flipped_bits_in_the_numbers_of_a_zip_are_noticed(tmp_path):
    with zipfile.ZipFile(KINDS[0]) as archive:
        numbers = archive.read("kinds_zip/data/0")
    whole = KINDS[0].read_bytes()
    start = whole.index(numbers)
    (tmp_path / "a.pt").write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    assert "CRC" in refused(tmp_path / "a.pt")


@pytest.mark.data
def test_published_files():
    files = sorted(Path(os.environ["JAXACCEL_DATA_DIR"], "pretrained").glob("*.th"))
    if not files:
        pytest.skip("JAXACCEL_DATA_DIR holds no pretrained/*.th")
    sizes = []
    for file in files:
        sizes.append(sum(array.size for array in torch_files.read(file)["state_dict"].values()))
    assert sizes == [SIZES[file.name[:8]] for file in files]


# Parameters and BatchNorm statistics.
SIZES = {"resnet20": 271_098, "resnet32": 466_426, "resnet44": 661_754, "resnet56": 857_082}
