"""Ways to break a checkpoint folder: `files` (name → bytes) come back changed, `rng` decides how."""

from __future__ import annotations

import json

import ml_dtypes  # noqa: F401 (numpy then knows bfloat16)
import msgpack
import numpy as np

ABSURD = (0, -1, 1, 7, 2**24, 2**31, 2**62, 10**18, 1e308, float("nan"), True, None, "8", "", [], [8], {})


def _pick(rng, values):
    values = [*values]
    return values[int(rng.integers(len(values)))]


def _weights(files):
    return [name for name in files if name.endswith((".safetensors", ".msgpack"))]


def _texts(files):
    return [name for name in files if name.endswith(".json")]


def _safetensors(files):
    return [name for name in files if name.endswith(".safetensors")]


def truncate(rng, files):
    name = _pick(rng, files)
    return files | {name: files[name][: int(rng.integers(len(files[name]) + 1))]}


def append(rng, files):
    name = _pick(rng, files)
    return files | {name: files[name] + rng.bytes(int(rng.integers(1, 40)))}


def flip_anywhere(rng, files):
    return _flipped(rng, files, _pick(rng, files), 0, None)


def flip_in_header(rng, files):
    """Bytes before the numbers; a msgpack file has its headers all over."""
    name = _pick(rng, _weights(files))
    end = 8 + int.from_bytes(files[name][:8], "little") if name.endswith(".safetensors") else None
    return _flipped(rng, files, name, 0, end)


def flip_in_body(rng, files):
    name = _pick(rng, _weights(files))
    start = 8 + int.from_bytes(files[name][:8], "little") if name.endswith(".safetensors") else 0
    return _flipped(rng, files, name, start, None)


def _flipped(rng, files, name, start, end):
    changed = bytearray(files[name])
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(start, min(end or len(changed), len(changed))))
        changed[place] ^= 1 << int(rng.integers(8)) if rng.random() < 0.5 else int(rng.integers(1, 256))
    return files | {name: bytes(changed)}


def cut_out(rng, files):
    name = _pick(rng, files)
    start, length = int(rng.integers(len(files[name]))), int(rng.integers(1, 64))
    return files | {name: files[name][:start] + files[name][start + length :]}


def insert(rng, files):
    name = _pick(rng, files)
    start = int(rng.integers(len(files[name]) + 1))
    return files | {name: files[name][:start] + rng.bytes(int(rng.integers(1, 64))) + files[name][start:]}


def overwrite(rng, files):
    name = _pick(rng, files)
    start = int(rng.integers(len(files[name])))
    fill = bytes([_pick(rng, (0, 0xFF, 0x20, 0x5B, 0x7B, 0x81, 0xC9, 0xDF))]) * int(rng.integers(1, 200))
    return files | {name: files[name][:start] + fill + files[name][start + len(fill) :]}


def lose_a_file(rng, files):
    gone = _pick(rng, files)
    return {name: contents for name, contents in files.items() if name != gone}


def swap_files(rng, files):
    one, two = _pick(rng, files), _pick(rng, files)
    return files | {one: files[two], two: files[one]}


def replace_a_file(rng, files):
    return files | {_pick(rng, files): _pick(rng, (b"", b"{}", b"[]", b"\0" * 100, b"[" * 5000, rng.bytes(500)))}


def edit_json(rng, files):
    """A key less, an absurd value, or two values exchanged, anywhere in a JSON file."""
    name = _pick(rng, _texts(files))
    contents = json.loads(files[name])
    inner, key = contents, _pick(rng, contents)
    while isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.7:
        inner = inner[key]
        key = _pick(rng, inner) if isinstance(inner, dict) else int(rng.integers(len(inner)))
    how = rng.random()
    if how < 0.3:
        del inner[key]
    elif how < 0.8:
        inner[key] = _pick(rng, ABSURD)
    else:
        other = _pick(rng, inner) if isinstance(inner, dict) else int(rng.integers(len(inner)))
        inner[key], inner[other] = inner[other], inner[key]
    return files | {name: json.dumps(contents).encode()}


def edit_header(rng, files):
    """The header of a safetensors file, in a way that its reader may find sound."""
    names = _safetensors(files)
    if not names:
        return edit_msgpack(rng, files)
    name = _pick(rng, names)
    length = int.from_bytes(files[name][:8], "little")
    header, body = json.loads(files[name][8 : 8 + length]), files[name][8 + length :]
    header, body = _edited(rng, header, body)
    text = json.dumps(header).encode()
    return files | {name: len(text).to_bytes(8, "little") + text + body}


def _edited(rng, header, body):
    tensors = [name for name in header if name != "__metadata__"]
    one, two = _pick(rng, tensors), _pick(rng, tensors)
    info, how = header[one], int(rng.integers(9))
    if how == 0:
        info["dtype"] = _pick(rng, ("F16", "BF16", "F64", "I32", "U8", "F8_E4M3", "BOOL", "X"))
    elif how == 1:
        info["shape"] = info["shape"][::-1]
    elif how == 2:
        info["shape"] = _pick(rng, ([], [0], [2**40, 2**40], [-1], [1, *info["shape"]], [2**63], "x", [1.5]))
    elif how == 3:
        info["data_offsets"] = header[two]["data_offsets"]
    elif how == 4:
        info["data_offsets"], header[two]["data_offsets"] = header[two]["data_offsets"], info["data_offsets"]
    elif how == 5:
        header[_pick(rng, ("extra", one + ".x", one.upper(), "../x"))] = header.pop(one)
    elif how == 6:
        header["extra.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
        body += b"\0" * 4
    elif how == 7:
        header[one], header[two] = header[two], header[one]
    else:
        start, end = info["data_offsets"]
        body = body[:start] + b"\xff" * (end - start) + body[end:]  # NaN in every float
    return header, body


def edit_msgpack(rng, files):
    """A tree of arrays with one that is not as it should be."""
    name = _pick(rng, [name for name in files if name.endswith(".msgpack")])
    tree = msgpack.unpackb(files[name])
    inner, key = tree, _pick(rng, tree)
    while isinstance(inner[key], dict):
        inner = inner[key]
        key = _pick(rng, inner)
    shape, dtype, body = msgpack.unpackb(inner[key].data)
    broken = [
        msgpack.ExtType(1, msgpack.packb((shape[::-1], dtype, body))),
        msgpack.ExtType(1, msgpack.packb((shape, "float16", body))),
        msgpack.ExtType(1, msgpack.packb(([2**40, 2**40], dtype, body))),
        msgpack.ExtType(1, msgpack.packb((shape, dtype, b"\xff" * len(body)))),
        msgpack.ExtType(1, msgpack.packb((shape, "int32", body))),
        msgpack.ExtType(2, inner[key].data),
        {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": inner[key]}},
        {"kernel": inner[key]},
        body,
        1.5,
        None,
    ]
    how = int(rng.integers(len(broken) + 2))
    if how < len(broken):
        inner[key] = broken[how]
    elif how == len(broken):
        del inner[key]
    else:
        tree["extra"] = inner[key]
    return files | {name: msgpack.packb(tree)}


def change_an_index(rng, files):
    """A shard that is elsewhere, or outside of the folder."""
    names = [name for name in files if name.endswith(".index.json")]
    if not names:
        return edit_json(rng, files)
    contents = json.loads(files[names[0]])
    listed = contents["weight_map"]
    places = (
        "../model.safetensors",
        "/etc/passwd",
        "config.json",
        "x" * 300 + ".safetensors",
        "\0.safetensors",
        "",
        *listed.values(),
    )
    listed[_pick(rng, listed)] = _pick(rng, places)
    return files | {names[0]: json.dumps(contents).encode()}


EVERY_KIND = (
    truncate,
    append,
    flip_anywhere,
    flip_in_header,
    flip_in_body,
    cut_out,
    insert,
    overwrite,
    lose_a_file,
    swap_files,
    replace_a_file,
    edit_json,
    edit_header,
    change_an_index,
)


def numbers(seed):
    """The source of all decisions."""
    return np.random.default_rng(seed)
