"""What lies beside weights: copied byte for byte, but for old weights and what can run code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.other_files import LARGEST_FILE, MOST_FILES, read_other_files
from ntkfusion.checkpoints.save import save_model
from tests.helpers.sentence_folder import HARMFUL, files_in, save_sentence_folder

#: What `save_model` writes itself, in any format.
OURS = {
    *("config.json", "model.safetensors", "README.md", ".ntkfusion", "ntkfusion.json", "ntkfusion.safetensors"),
    *("flax_model.msgpack", "flax_model.digests.json"),
}


@pytest.mark.parametrize("kind", ["hf", "flax", "ntkfusion"])
def test_saved_folders_keep_what_is_not_weights(tmp_path, kind):
    expected = save_sentence_folder(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours", format=kind)
    found = files_in(tmp_path / "ours")
    assert {name: found[name] for name in expected} == expected
    assert found.keys() - expected.keys() <= OURS
    # and once more, through another format
    save_model(load_model(tmp_path / "ours"), tmp_path / "again", format="hf")
    again = files_in(tmp_path / "again")
    assert {name: again[name] for name in expected} == expected


def test_readme_says_what_was_copied_and_what_not(tmp_path):
    save_sentence_folder(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "Copied as they were: 1\\_Pooling" not in card
    assert "1_Pooling/config.json" in card
    for name in HARMFUL:
        assert name.partition("/")[0] in card
    assert "pickle" in card
    assert "it is a program" in card


def test_files_are_kept_though_the_folder_is_gone(tmp_path):
    expected = save_sentence_folder(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", tokenizer=False)
    (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    save_model(model, tmp_path / "ours")
    assert expected.items() <= files_in(tmp_path / "ours").items()


def read(folder, files):
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    return read_other_files(folder)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x80\x05\x95rest", "pickle"),
        (b"PK\x03\x04rest", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_contents_that_are_not_what_the_name_says_stay_behind(tmp_path, contents, reason):
    files, left = read(tmp_path, {"merges.txt": contents})
    assert not files
    assert reason in left["merges.txt"]


@pytest.mark.parametrize("name", ["a.BIN", "optimizer.pt", "rng_state.pth", "x.pkl", "y.npz", "modeling.py", "lib.so"])
def test_pickles_and_programs_stay_behind(tmp_path, name):
    files, left = read(tmp_path, {name: b"anything"})
    assert (files, [*left]) == ({}, [name])


def test_subfolders_with_weights_of_their_own_stay_behind_as_a_whole(tmp_path):
    files, left = read(
        tmp_path,
        {
            "checkpoint-500/config.json": b"{}",
            "checkpoint-500/model.safetensors": b"old",
            "results/.ntkfusion": b"",
            "results/results.json": b"{}",
            ".git/config": b"secret",
            ".env": b"secret",
            "logs/events.json": b"{}",
            "logs/.env": b"secret",
        },
    )
    assert [*files] == ["logs/events.json"]
    assert {*left} == {"checkpoint-500/", "results/", ".git/", ".env", "logs/.env"}


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"private key")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    (folder / "gone.txt").symlink_to(tmp_path / "gone")
    (folder / "folder").symlink_to(tmp_path, target_is_directory=True)
    files, left = read(folder, {"here.txt": b"x"})
    assert [*files] == ["here.txt"]
    assert [*left] == ["folder/", "gone.txt", "vocab.txt"]


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "12ab"
    blobs.mkdir(parents=True)
    (snapshot / "1_Pooling").mkdir(parents=True)
    (blobs / "77").write_bytes(b"{}")
    (snapshot / "1_Pooling" / "config.json").symlink_to(Path("..") / ".." / ".." / "blobs" / "77")
    assert read_other_files(snapshot) == ({"1_Pooling/config.json": b"{}"}, {})


def test_files_that_cannot_be_copied_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    with (tmp_path / "corpus.txt").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    (tmp_path / "two\nlines.txt").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"latin\xe9.txt")).write_bytes(b"x")
    (tmp_path / "many").mkdir()
    for number in range(MOST_FILES + 1):
        (tmp_path / "many" / str(number)).touch()
    files, left = read_other_files(tmp_path)
    assert files == {}
    assert {"pipe", "corpus.txt", "many/", r"'two\nlines.txt'", r"'latin\udce9.txt'"} == left.keys()


@pytest.mark.parametrize("contents", [b"{", b"[1, {}]", b"{}", b"\xff", b'[{"path": 7}]'])
def test_broken_lists_of_modules_are_copied_too(tmp_path, contents):
    assert read(tmp_path, {"modules.json": contents}) == ({"modules.json": contents}, {})
