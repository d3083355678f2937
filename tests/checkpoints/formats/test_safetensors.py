"""Reading safetensors folders: shards, and every way in which files can be broken."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ntkfusion.checkpoints.formats.safetensors import open_safetensors
from ntkfusion.errors import CheckpointError


def problems_of(path):
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path)
    assert caught.value.source == str(path)
    return caught.value.problems


def test_headers_then_arrays(folder):
    opened = open_safetensors(folder.write())
    assert {name: info.shape for name, info in opened.tensors.items()} == {
        name: array.shape for name, array in folder.tensors.items()
    }
    info = opened.tensors["embeddings.LayerNorm.weight"]
    assert (info.dtype, info.file) == ("F32", folder.weights)
    found = dict(opened.arrays(folder.tensors))
    for name, array in folder.tensors.items():
        np.testing.assert_array_equal(found[name], array)


def test_shards_equal_the_single_file(folder):
    single = open_safetensors(folder.write())
    expected = dict(single.arrays(single.tensors))
    sharded = open_safetensors(folder.write_shards())
    found = dict(sharded.arrays(sharded.tensors))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_single_file_wins_over_an_index(folder):
    folder.write()
    folder.write_index({"gone": "model-00001-of-00001.safetensors"})
    assert open_safetensors(folder.path).tensors.keys() == folder.tensors.keys()


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 3000, 0.5, -1])
def test_truncated_file(folder, kept):
    folder.write()
    whole = folder.weights.read_bytes()
    size = int(len(whole) * kept) if isinstance(kept, float) else kept % len(whole)
    folder.weights.write_bytes(whole[:size])
    (problem,) = problems_of(folder.path)
    assert problem.startswith(f"model.safetensors is damaged or incomplete ({size} bytes")
    assert problem.endswith("download it again")
    # from the header on, the file itself says how long it should be
    assert (f"its header declares {len(whole)}" in problem) == (kept in (0.5, -1))


def test_appended_bytes(folder):
    folder.write()
    size = folder.weights.stat().st_size
    folder.weights.write_bytes(folder.weights.read_bytes() + b"more")
    (problem,) = problems_of(folder.path)
    assert f"({size + 4} bytes, its header declares {size};" in problem


@pytest.mark.parametrize(
    "contents", [b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x80\x04pickle", b"\x10\0\0\0\0\0\0\0" + b"[" * 16]
)
def test_something_else_under_this_name(folder, contents):
    folder.write()
    folder.weights.write_bytes(contents)
    (problem,) = problems_of(folder.path)
    assert "model.safetensors is damaged or incomplete" in problem


def test_git_lfs_pointer(folder):
    folder.write()
    folder.weights.write_text("version git-lfs spec v1\noid sha256:00\nsize 12\n")
    assert problems_of(folder.path) == (
        "model.safetensors is a Git LFS pointer, not the weights: run `git lfs pull` in the folder",
    )


def test_folder_under_the_name_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "last.ckpt", "model.pth"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04 a pickle that would run code")
    (problem,) = problems_of(tmp_path)
    assert name in problem
    assert "never opened" in problem
    assert "save_pretrained(out, safe_serialization=True)" in problem


def test_no_weights(tmp_path):
    assert "it holds no weights; expected model.safetensors" in problems_of(tmp_path)[0]


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\b.safetensors", "..", "", "shard.bin"],
)
def test_shard_names_cannot_leave_the_folder(folder, shard):
    folder.write_shards()
    (folder.path.parent / "model.safetensors").write_bytes(b"")
    first, *others = folder.index
    folder.write_index({first: shard} | {name: folder.index[name] for name in others})
    problems = problems_of(folder.path)
    expected = f"names the shard {shard!r}; expected a .safetensors file in the same folder"
    assert any(expected in problem for problem in problems)


def test_index_and_shards_must_agree(folder):
    folder.write_shards()
    weight_map = folder.index
    first, second, third = sorted(set(weight_map.values()))
    (folder.path / first).unlink()
    (folder.path / second).write_bytes(b"")
    extra = {name: np.zeros(1, np.float32) for name in ("twice", "unlisted")}
    save_file(extra, folder.path / third)
    save_file({"twice": np.zeros(1, np.float32)}, folder.path / "model-4.safetensors")
    folder.write_index({"a": first, "b": second, "c": third, "twice": third, "d": "model-4.safetensors"})
    problems = problems_of(folder.path)
    for expected in (
        f"{first}, a shard that model.safetensors.index.json lists, is missing: download it again",
        f"{second} is damaged or incomplete (0 bytes",
        f"c is listed in {third}, which does not hold it",
        "d is listed in model-4.safetensors, which does not hold it",
        "twice is in 2 shards, expected one",
        "unlisted is in a shard, but model.safetensors.index.json does not list it",
    ):
        assert sum(problem.startswith(expected) for problem in problems) == 1, (expected, problems)
    assert len(problems) == 6


@pytest.mark.parametrize("contents", ["{", "[]", "{}", json.dumps({"weight_map": {"a": 1}}), "\x00"])
def test_broken_index(folder, contents):
    folder.write_shards()
    (folder.path / "model.safetensors.index.json").write_text(contents)
    (problem,) = problems_of(folder.path)
    assert problem.startswith("model.safetensors.index.json")


def test_file_that_disappears_after_its_header_was_read(folder):
    opened = open_safetensors(folder.write())
    folder.weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: No such file"):
        dict(opened.arrays(folder.tensors))
