"""Makes hostile pickles as they may stand in a PyTorch checkpoint, by the operations of their programs."""

# ruff: noqa: E501 - a line is a case

import io
import os
import pickle
import struct
import zipfile

TORCH_HEADER = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
FLOAT = b"ctorch\nFloatStorage\n"
SYSTEM = f"c{os.system.__module__}\nsystem\n".encode()
HUGE = (-1, 1 << 31, 1 << 47, (1 << 63) - 1, 1 << 64)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(shape=b"K\x02K\x02\x86", size=b"K\x04", key="0"):
    """The operations that push a tensor of 2x2 numbers in storage 0."""
    pid = b"(" + text("storage") + FLOAT + text(key) + text("cpu") + size + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\0" + shape + b"K\x02K\x01\x86\x89ccollections\n"
        b"OrderedDict\n)RtR"
    )


def program(value, protocol=2):
    """The pickle of {"state_dict": {"w": a tensor}, "x": what the operations `value` push}."""
    state = text("state_dict") + b"}" + text("w") + tensor() + b"s"
    return bytes([0x80, protocol]) + b"}(" + state + text("x") + value + b"u."


def torch_zip(data, numbers=b"\0" * 16):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("a/data.pkl", data), ("a/data/0", numbers), ("a/byteorder", b"little")):
            archive.writestr(name, content)
    return file.getvalue()


def torch_legacy(data, numbers=b"\0" * 16):
    return TORCH_HEADER + data + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + numbers


def pickle_programs(command, many):
    """Operations after which a pickle would run `command`, hang, or fill memory; `many` sets their number."""
    shell = text(command)
    lists = b"]" * many + b"a" * (many - 1)
    big = b"\x8b" + struct.pack("<i", many) + b"\x7f" * many  # LONG4
    blob, key = text("k" * many), text("k" * 4000)
    wide = b"(" + b"N" * many + b"tq\x05"
    return {
        "os.system": SYSTEM + shell + b"\x85R",
        "object": SYSTEM + shell + b"\x85\x81",
        "inst": b"(" + shell + b"i" + SYSTEM[1:],
        "build": SYSTEM + b")R}" + text("__setstate__") + SYSTEM + b"sb",
        "setstate of a dictionary": b"}" + b"}" + text("__class__") + SYSTEM + b"sb",
        "extension": b"\x82\xf0" + shell + b"\x85R",
        "extension 4": b"\x84" + struct.pack("<i", 1 << 30) + b")R",
        "persistent text": b"P" + command.encode() + b"\n",
        "persistent object": shell + b"Q",
        "persistent module": b"(" + text("module") + SYSTEM + text("a") + text("b") + b"tQ",
        "eval by getattr": b"cbuiltins\ngetattr\ncbuiltins\n__dict__\n" + text("eval") + b"\x86R" + shell + b"\x85R",
        "operator": b"coperator\nattrgetter\n" + text("system") + b"\x85Rcos\npath\n\x85R",
        "numpy loads": b"cnumpy\nload\n" + shell + b"\x85R",
        "torch loads bytes": b"ctorch.storage\n_load_from_bytes\n" + shell + b"\x85R",
        "nested lists": lists,
        "nested tuples": b")" + b"\x85" * many,
        "nested tuples as key": b"})" + b"\x85" * many + b"Ns",
        "nested calls": b"ccollections\nOrderedDict\n)R" + b"\x85" * many,
        "cyclic list": b"]q\x05h\x05a",
        "cyclic dictionary": b"}q\x05" + text("a") + b"h\x05s",
        "doubled lists": b"(]q\x00" + b"".join(b"]q%ch%ch%c\x86a" % (i + 1, i, i) for i in range(60)) + b"t",
        "doubled dictionaries": b"(" + tensor() + b"q\x63}q\x00" + text("a") + b"h\x63s"
        + b"".join(b"}q%c(" % (i + 1) + text("a") + b"h%c" % i + text("b") + b"h%cu" % i for i in range(60)) + b"t",
        "integers of many bits as keys": b"}(" + big + b"q\x05N" + b"h\x05N" * many + b"u",
        "colliding keys": b"}("
        + b"".join(b"\x8a\x0c" + (k * ((1 << 61) - 1)).to_bytes(12, "little") + b"N" for k in range(many // 10)) + b"u",
        "a long key again and again": b"}(" + blob + b"q\x05N" + blob + b"q\x06N" + b"h\x05Nh\x06N" * many + b"u",
        "two long keys": b"}(" + key + b"q\x05N" + key + b"q\x06N" + b"h\x05Nh\x06N" * many + b"u",
        "long globals": blob + b"q\x05" + b"h\x05h\x05\x93" * many,
        "globals of 200": text("k" * 200) + b"q\x05" + b"h\x05h\x05\x93" * many,
        "bytes again and again": blob + b"q\x05(" + (b"c_codecs\nencode\nh\x05" + text("latin1") + b"\x86R") * (many // 40) + b"t",
        "wide arguments": wide + b"ctorch\nSize\nq\x06" + b"h\x06h\x05R" * many,
        "wide sets": b"](" + b"N" * many + b"eq\x05c__builtin__\nset\nq\x06" + b"h\x06h\x05\x85R" * many,
        "wide shapes": tensor(shape=b"(" + b"K\1" * many + b"t"),
        "marks": b"(" * many,
        "memo": b"N" + b"\x94" * many,
        "far memo": b"Nr\xff\xff\xff\xff",
        "empty lists": b"(" + b"]" * many + b"t",
        "long text claimed": b"X\xff\xff\xff\x7f",
        "longer text claimed": b"\x8d" + struct.pack("<Q", 1 << 62),
        "pops": b"0" * 20,
        "unknown operation": b"\xff",
        "frame": b"\x95" + struct.pack("<Q", 1 << 60) + b"N",
        **{f"tensor of {n}": tensor(shape=literal(n) + b"K\x02\x86") for n in HUGE},
        **{f"storage of {n}": tensor(size=literal(n)) for n in HUGE},
        "storage above": tensor(key="../../../etc/passwd"),
        "object array": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01K\x01\x85cnumpy\n"
        b"dtype\n" + text("O8") + b"\x85R\x89](" + SYSTEM + shell + b"\x85Retb",
        "array of no size": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01J\xff\xff\xff\xff"
        b"\x85cnumpy\ndtype\n" + text("f4") + b"\x85R\x89C\x04abcdtb",
    }  # fmt: skip


def literal(number):
    raw = number.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw
