"""Makes hostile files: valid small ones of each format, and what can be wrong with them.

Everything is made by these functions from a seed; nothing hostile is stored. A case is a name and the bytes of a file.
"""

# ruff: noqa: E501 - a line is a case

import io
import json
import lzma
import pickle
import random
import struct
import zipfile
import zlib

from hostile_pickles import program, torch_legacy, torch_zip

HUGE = (-1, 1 << 31, 1 << 47, (1 << 63) - 1, 1 << 64)


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(descr="'<f4'", shape="(2, 2)", body=b"\0" * 16, fortran="False"):
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def safetensors(header, body=b"\0" * 16):
    coded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(coded)) + coded + body


def entry(**changes):
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


def packed(table, streams=None, sizes=None, coder="lzma"):
    """A packed file with that table, whatever it says."""
    import hashlib

    streams = {"table": table if isinstance(table, bytes) else json.dumps(table).encode(), **(streams or {})}
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "lc": 0, "lp": 0, "pb": 0}]
    coded = {
        name: lzma.compress(plain, lzma.FORMAT_RAW, filters=filters) if coder == "lzma" else plain
        for name, plain in streams.items()
    }
    index = {
        name: {"coder": coder, "size": len(plain), "sha256": hashlib.sha256(plain).hexdigest()} | (sizes or {}).get(name, {})
        for name, plain in streams.items()
    }  # fmt: skip
    header, at = {"__metadata__": {"jaxaccel": json.dumps({"version": 2, "streams": index})}}, 0
    for name, data in coded.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    return safetensors(header, b"".join(coded.values()))


def leaf(**changes):
    return {"path": ["w"], "dtype": "uint8", "shape": [4], "nonzero": None} | changes


def valid():
    """One small good file of each format, and the name of its kind."""
    return {
        "zip.pt": torch_zip(program(b"N")),
        "legacy.pt": torch_legacy(program(b"N")),
        "a.npz": zipped({"w.npy": npy(), "b.npy": npy("'<i8'", "(2,)")}),
        "deflated.npz": zipped({"w.npy": npy()}, zipfile.ZIP_DEFLATED),
        "a.safetensors": safetensors(entry()),
        "a.packed": packed([leaf()], {"uint8.0": b"\1\2\3\4"}),
        "a.json": b'{"dense": 1.5}',
    }


def damaged(content, seed, flips=60):
    """`content` cut at structural borders and elsewhere, and with bits flipped."""
    rng = random.Random(seed)
    borders = {i for mark in (b"PK", b"{", b"}", b"\x93NUMPY", b"(", b".") for i in finds(content, mark)}
    for cut in sorted(
        {0, 1, 7, 8, 9, len(content) - 1, *borders} | {rng.randrange(len(content)) for _ in range(8)}
    ):
        yield f"cut at {cut}", content[:cut]
    yield "longer", content + b"\0" * 9
    yield "twice", content * 2
    for i in range(flips):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield f"flip {i}", bytes(changed)


def finds(content, mark):
    at = content.find(mark)
    while at >= 0:
        yield at
        at = content.find(mark, at + 1)


def archives():
    """What can be wrong with an archive, and with the arrays in one."""
    good = zipped({"w.npy": npy()}, zipfile.ZIP_DEFLATED)
    secret = bytearray(good)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        secret[secret.index(mark) + at] |= 1
    lying = bytearray(zipped({"w.npy": npy(body=b"\0" * (1 << 27))}, zipfile.ZIP_DEFLATED))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # where the size stands
        place = lying.index(mark) + at
        lying[place : place + 4] = struct.pack("<I", 200)
    return {
        "encrypted": bytes(secret),
        "smaller than said": bytes(lying),
        "bzip2": zipped({"w.npy": npy()}, zipfile.ZIP_BZIP2),
        "lzma": zipped({"w.npy": npy()}, zipfile.ZIP_LZMA),
        "names above": zipped({"../../w.npy": npy()}),
        "absolute name": zipped({"/etc/w.npy": npy()}),
        "an archive inside": zipped({"w.npy": good}),
        "claims much": zipped({"w.npy": npy(shape="(1000000, 1000000)")}),
        "claims more": zipped({"w.npy": npy(shape=f"({1 << 62}, {1 << 62})")}),
        "negative": zipped({"w.npy": npy(shape="(-2, -2)")}),
        "bools": zipped({"w.npy": npy(shape="(True, 4)")}),
        "objects": zipped({"w.npy": npy("'|O'", "(1,)", pickle.dumps([print]))}),
        "structures": zipped({"w.npy": npy("[('a', '<f4'), ('b', '|O')]", "(1,)")}),
        "a subarray": zipped({"w.npy": npy("('<f4', (1000000, 1000000))", "(1,)")}),
        "wide void": zipped({"w.npy": npy("'|V2000000000'", "(1,)")}),
        "an expression": zipped({"w.npy": npy("__import__('os').system('true')")}),
        "deep header": zipped({"w.npy": npy("(" * 900 + ")" * 900)}),
        "minuses": zipped({"w.npy": npy(shape="-" * 8000 + "1")}),
        "version 3": zipped({"w.npy": b"\x93NUMPY\x03\x00" + npy()[8:]}),
        "version 2": zipped({"w.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + npy()[10:]}),
        "no magic": zipped({"w.npy": b"hello"}),
        "many axes": zipped({"w.npy": npy(shape="(" + "1," * 100 + ")")}),
        "compressed checkpoint": zipped({"a/data.pkl": program(b"N")}, zipfile.ZIP_DEFLATED),
        "two checkpoints": zipped({"a/data.pkl": program(b"N"), "b/data.pkl": program(b"N")}),
    }


def headers():
    """What can be wrong with the header of a safetensors file."""
    return {
        **{f"shape {n}": safetensors(entry(shape=[n, 2])) for n in HUGE},
        **{f"offset {n}": safetensors(entry(data_offsets=[n, n + 16])) for n in HUGE},
        "overlap": safetensors(entry() | {"v": entry()["w"]}),
        "gap": safetensors(entry(data_offsets=[4, 20]), b"\0" * 20),
        "rest": safetensors(entry(), b"\0" * 20),
        "short": safetensors(entry(), b"\0" * 12),
        "backwards": safetensors(entry(data_offsets=[16, 0])),
        "unknown dtype": safetensors(entry(dtype="F4")),
        "a dtype of objects": safetensors(entry(dtype="O")),
        "a list as dtype": safetensors(entry(dtype=["F32"])),
        "floats as shape": safetensors(entry(shape=[2.0, 2])),
        "bools as shape": safetensors(entry(shape=[True, 4])),
        "twins": safetensors(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "deep": safetensors(b'{"w":' + b"[" * 100_000),
        "long number": safetensors(b'{"w":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,16]}}'),
        "no object": safetensors(b"[1]"),
        "metadata of numbers": safetensors(entry() | {"__metadata__": {"a": 1}}),
        "a long header claimed": struct.pack("<Q", 1 << 62) + b'{"w":1}',
        "not UTF-8": safetensors(b'{"\xff\xfe":1}'),
        "many axes": safetensors(entry(shape=[1] * 1000 + [4])),
    }  # fmt: skip


def packs():
    """What can be wrong with a packed file."""
    quantized = {"path": ["w"], "type": "QuantArray", "static": {"bits": 8, "real": "float32", "length": None},
                 "parts": {"qvalue": leaf(dtype="int8"), "scale": leaf(dtype="float32", shape=[1]), "zero_point": None}}  # fmt: skip
    return {
        "bomb": packed([leaf()], {"uint8.0": bytes(72 << 20)}),
        "bomb as table": packed(b"[" + b" " * (1 << 25) + b"]"),
        "a size claimed": packed([leaf()], {"uint8.0": b"\1\2\3\4"}, {"uint8.0": {"size": 5 << 30}}),
        "a negative size": packed([leaf()], {"uint8.0": b"\1\2\3\4"}, {"uint8.0": {"size": -1}}),
        "zeros claimed": packed([leaf(shape=[5 << 30], nonzero=0)], {"nonzero": b""}),
        "many zeros": packed([leaf(shape=[1 << 26], nonzero=0)] * 80, {"nonzero": bytes(1 << 23)}),
        "negative count": packed([leaf(nonzero=-1)], {"nonzero": b"\xff", "uint8.0": b"\1\2\3\4"}),
        **{f"shape {n}": packed([leaf(shape=[n, 2])], {"uint8.0": b"\1\2\3\4"}) for n in HUGE},
        "objects": packed([leaf(dtype="O")], {"object.0": b"\1\2\3\4"}),
        "wide void": packed([leaf(dtype="V1000000000")]),
        "an unknown coder": packed([leaf()], {"uint8.0": b"\1"}, {"uint8.0": {"coder": "os.system"}}),
        "an unknown class": packed([quantized | {"type": "subprocess.Popen"}]),
        "other fields": packed([quantized | {"static": {"__class__": 1}}]),
        "a class of no dtype": packed([quantized | {"static": {"real": "object"}}]),
        "a huge length": packed([quantized | {"static": {"length": 1 << 40}}], {f"{t}.{i}": b"\1\2\3\4" for t in ("int8", "float32") for i in range(4)}),
        "parts in parts": packed([nested_parts(quantized, 300)]),
        "a deep path": packed([leaf(path=["a"] * 5000)], {"uint8.0": b"\1\2\3\4"}),
        "no path": packed([leaf(path=None)], {"uint8.0": b"\1\2\3\4"}),
        "no table": safetensors({"__metadata__": {"jaxaccel": '{"version": 2, "streams": {}}'}}, b""),
        "deep metadata": safetensors({"__metadata__": {"jaxaccel": "[" * 100_000}}, b""),
        "streams as list": safetensors({"__metadata__": {"jaxaccel": '{"version": 2, "streams": [1]}'}}, b""),
        "a list as version": safetensors({"__metadata__": {"jaxaccel": '{"version": [2], "streams": {}}'}}, b""),
    }  # fmt: skip


def nested_parts(entry, depth):
    for _ in range(depth):
        entry = entry | {"parts": {"qvalue": entry, "scale": None}}
    return entry


def foreign():
    """Files of other kinds."""
    return {
        "empty": b"", "text": b"weights", "html": b"<!doctype html><html>", "json": b'{"w": [1, 2]}', "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "gzip": b"\x1f\x8b\x08\0" + zlib.compress(b"w"), "tar": b"w".ljust(257, b"\0") + b"ustar\x0000" + bytes(700),
        "ONNX": b"\x08\x08\x12\x07pytorch:\x90\x01" + bytes(64), "npy": npy(), "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "pickle": pickle.dumps({"w": 1}), "text pickle": pickle.dumps({"w": 1}, 0), "zeros": bytes(4096), "zip end": b"PK\x05\x06" + bytes(18),
    }  # fmt: skip


def calibrations():
    """JSON that is no calibration."""
    values = ("NaN", "Infinity", "-1", '"1"', "[1]", "{}", "null", "true", "1e999", "9" * 5000)
    return {
        **{f"value {v[:9]}": f'{{"dense": {v}}}'.encode() for v in values},
        "deep": b"[" * 100_000, "list": b"[]", "Latin-1": b'{"a\xff": 1}',
    }  # fmt: skip


def zeros_in_npz(megabytes):
    """An npz that claims that many megabytes, and takes a thousandth."""
    return zipped(
        {"w.npy": npy("'|u1'", f"({megabytes << 20},)", bytes(megabytes << 20))}, zipfile.ZIP_DEFLATED
    )


def pictures():
    """Pictures of 900 megapixels in a few bytes, and one that Pillow would hand to a program."""
    wide = struct.pack(">II", 30_000, 30_000)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", wide + b"\x08\x02\0\0\0")
    bmp = b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return {
        "PNG": png + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b""),
        "GIF": b"GIF89a"
        + struct.pack("<HH", 30_000, 30_000)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 30_000, 30_000)
        + b"\0\x02\x02\x44\x01\0;",
        "BMP": bmp + bytes(100),
        "PPM": b"P6 30000 30000 255\n" + bytes(100),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touch canary) system\n%%EOF\n",
    }
