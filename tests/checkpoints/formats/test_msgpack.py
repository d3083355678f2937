"""Flax msgpack checkpoints: files that flax itself writes and reads, shards, and files that are made to harm."""

from __future__ import annotations

import dataclasses
import json
import resource
import struct

import flax.serialization
import flax.traverse_util
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest

from ntkfusion.checkpoints.formats import msgpack as msgpack_writer
from ntkfusion.checkpoints.formats.msgpack import open_msgpack
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import CheckpointError
from tests.helpers.saving import assert_same_model, assert_same_tensors, fused


def flax_names(tensors):
    """PyTorch's tensors as Flax's tree, by rules of this test's own."""
    flat = {}
    for name, array in tensors.items():
        *path, last = name.split(".")
        if last == "weight":
            last = (
                "embedding" if "embeddings." in name and array.ndim == 2 else "kernel" if array.ndim == 2 else "scale"
            )
        flat[*path, last] = np.array(array.T if last == "kernel" else array, order="C")
    return flax.traverse_util.unflatten_dict(flat)


@pytest.fixture
def tree(folder):
    """Flax's tree of the small BERT, whose folder has no other weights."""
    folder.write()
    folder.weights.unlink()
    return flax_names(folder.tensors)


def write(folder, tree):
    (folder.path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    return folder.path


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    return "\n".join(caught.value.problems)


def read(path):
    opened = open_msgpack(path)
    return dict(opened.arrays(opened.tensors))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_flax_writes(folder, tree, dtype):
    write(folder, jax.tree.map(lambda array: array.astype(dtype), tree))
    expected = {name: array.astype(dtype) for name, array in folder.tensors.items()}
    assert_same_tensors({name: np.ascontiguousarray(array) for name, array in read(folder.path).items()}, expected)


def test_a_model_from_flax_equals_the_one_from_safetensors(folder, tree):
    flax_model = load_model(write(folder, tree))
    assert_same_model(flax_model, load_model(folder.write()))
    # with both kinds of weights, safetensors are read
    write(folder, jax.tree.map(np.zeros_like, tree))
    assert_same_model(load_model(folder.path), flax_model)


def test_everything_under_one_key_and_prefix(folder, tree):
    expected = load_model(write(folder, tree))
    assert_same_model(load_model(write(folder, {"params": {"bert": tree}})), expected)


def test_chunks(folder, tree, monkeypatch):
    expected = load_model(write(folder, tree))
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    write(folder, tree)
    assert b"__msgpack_chunked_array__" in (folder.path / "flax_model.msgpack").read_bytes()
    assert_same_model(load_model(folder.path), expected)


def test_shards(folder, tree):
    expected = load_model(write(folder, tree))
    (folder.path / "flax_model.msgpack").unlink()
    flat = flax.traverse_util.flatten_dict(tree)
    weight_map = {}
    for index in range(2):
        part = dict([*flat.items()][index::2])
        name = f"flax_model-0000{index + 1}-of-00002.msgpack"
        nested = flax.traverse_util.unflatten_dict(part)
        (folder.path / name).write_bytes(flax.serialization.msgpack_serialize(nested))
        weight_map |= {"/".join(path): name for path in part}
    index = folder.path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_model(load_model(folder.path), expected)
    moved = {**weight_map, "embeddings/LayerNorm/bias": "flax_model-00002-of-00002.msgpack"}
    moved |= {"embeddings/LayerNorm/scale": "flax_model-00001-of-00002.msgpack"}
    for broken, sentence in (
        ({**weight_map, "gone": "flax_model-00001-of-00002.msgpack"}, "gone is listed in flax_model-00001"),
        ({name: weight_map[name] for name in [*weight_map][1:]}, "does not say so"),
        ({**weight_map, "x": "../flax_model.msgpack"}, "expected a .msgpack file in the same folder"),
        ({**weight_map, "x": "flax_model-00003-of-00003.msgpack"}, "is missing: download it again"),
        (moved, "which does not hold it"),
    ):
        index.write_text(json.dumps({"weight_map": broken}))
        assert sentence in refusal(folder.path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [10**9, 2000])
def test_written_and_read_again(folder, tmp_path, dtype, size):
    folder.tensors = {name: array.astype(dtype) for name, array in folder.tensors.items()}
    model = load_model(folder.write())
    save_model(model, tmp_path / "out", format="flax", max_shard_size=size)
    again = load_model(tmp_path / "out")
    assert_same_model(again, model)
    assert again.origin.dtypes == model.origin.dtypes
    save_model(again, tmp_path / "back")
    assert (tmp_path / "back/config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    if size > 2000:
        restored = flax.serialization.msgpack_restore((tmp_path / "out/flax_model.msgpack").read_bytes())
        expected = flax.traverse_util.flatten_dict(flax_names(folder.tensors), sep="/")
        assert_same_tensors(flax.traverse_util.flatten_dict(restored, sep="/"), expected)


def test_chunks_that_this_library_writes(folder, tmp_path, monkeypatch):
    model = load_model(folder.write())
    monkeypatch.setattr(msgpack_writer, "CHUNK_SIZE", 100)
    save_model(model, tmp_path / "out", format="flax")
    restored = flax.serialization.msgpack_restore((tmp_path / "out/flax_model.msgpack").read_bytes())
    expected = flax.traverse_util.flatten_dict(flax_names(folder.tensors), sep="/")
    assert_same_tensors(flax.traverse_util.flatten_dict(restored, sep="/"), expected)
    assert_same_model(load_model(tmp_path / "out"), model)


def test_constants_are_folded(folder, tmp_path):
    model = load_model(folder.write()).replace_mlp_blocks({0: fused(), 1: fused()})
    save_model(model, tmp_path / "out", format="flax")
    kernel = load_model(tmp_path / "out").mlp_blocks()[0].w1
    np.testing.assert_allclose(kernel, fused().fold().w1, rtol=1e-6)


def test_changes_are_noticed(folder, tmp_path):
    save_model(load_model(folder.write()), tmp_path / "out", format="flax")
    weights, config = tmp_path / "out/flax_model.msgpack", tmp_path / "out/config.json"
    whole, contents = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not what ntkfusion wrote" in refusal(tmp_path / "out")
    weights.write_bytes(whole)
    config.write_text(contents.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert 'hidden_act was "gelu" and is now "relu", which is another function' in refusal(tmp_path / "out")
    (tmp_path / "out/flax_model.digests.json").unlink()
    assert dataclasses.asdict(load_model(tmp_path / "out").config)["hidden_act"] == "relu"


def array(shape=(2,), dtype="float32", body=b"\0" * 8):
    """An array as Flax packs it."""
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, body)))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": "text"}, "something else than a map or an array"),
        ({"a": None}, "something else than a map or an array"),
        ({"a": [1, 2]}, "something else than a map or an array"),
        ({"a": 1.5}, "something else than a map or an array"),
        ({"a": 3}, "a is a number, expected an array"),
        ({"a": msgpack.ExtType(2, b"\x92\0\0")}, "extension of type 2"),
        ({"a": msgpack.ExtType(1, b"x")}, "does not begin with shape, dtype and bytes"),
        ({"a": array(dtype="object")}, "dtype 'object'"),
        ({"a": array(dtype="<f4")}, "dtype '<f4'"),
        ({"a": array(shape=(3,))}, "not so many bytes"),
        ({"a": array(shape=(2**62, 2**62))}, "not so many bytes"),
        ({"a": array(shape=(-2,))}, "not of whole numbers"),
        ({"a": array(shape=(1,) * 17)}, "no shape of at most 16 axes"),
        ({"a": array(shape="ab")}, "no shape"),
        ({1: array()}, "something else than a name"),
        ({"": array()}, "something else than a name"),
        ({"x" * 1000: array()}, "something else than a name"),
        ([array()], "something else than a map"),
        (7, "holds a single value"),
        ({}, "the weights have 0"),
        ({"a": {"__msgpack_chunked_array__": True}}, "lacks its shape or its chunks"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": array()}}}, "do not add up"),
        ({"a": {"kernel": array(), "scale": array()}}, "under two names of one tensor"),
    ],
)
def test_files_that_are_no_checkpoint(folder, tree, value, sentence):
    (folder.path / "flax_model.msgpack").write_bytes(msgpack.packb(value))
    assert sentence in refusal(folder.path)


BOMBS = {
    "nesting": b"\x81\xa1a" * 100_000,
    "map of 4 billion": b"\xdf\xff\xff\xff\xff\xa1a",
    "map as long as the file": b"\xdf" + struct.pack(">I", 10**6) + b"\xa1a\x80" * 700_000,
    "name of 4 GB": b"\x81\xdb\xff\xff\xff\xff",
    "extension of 4 GB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "bytes of 4 GB": b"\x81\xa1a\xc7\x20\x01\x93\x91\x01\xa7float32\xc6\xff\xff\xff\xff" + b"\0" * 20,
    "shape of 4 billion axes": b"\x81\xa1a\xc7\x20\x01\x93\xdd\xff\xff\xff\xff" + b"\0" * 30,
    "same key": b"\x82\xa1a\x80\xa1a\x80",
    "more behind it": b"\x80" * 2,
    "nothing": b"",
    "never used type": b"\xc1",
    "many empty maps": b"\xde\x0f\xff" + b"".join(b"\xa4" + f"{i:04x}".encode() + b"\x80" for i in range(4095)),
    "zero-sized arrays": b"\x81\xa1a" + msgpack.packb(array(shape=(0, 2**63), body=b"")),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_cost_nothing(folder, tree, bomb):
    (folder.path / "flax_model.msgpack").write_bytes(bomb)
    refusal(folder.path)  # whatever is loaded once is loaded now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(folder.path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
