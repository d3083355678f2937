"""Files that belong together: all new, or all as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from ntkfusion.errors import InputError, OutputExistsError
from ntkfusion.utils.files import Output, check_files, new_files

NAMES = ("k.npz", "k.png", "k_spectrum.png")


def paths(folder):
    return [folder / name for name in NAMES]


def write(folder, text, **options):
    with new_files(paths(folder), **options) as temporary:
        for path in temporary:
            path.write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_appear_together_in_a_new_folder(tmp_path):
    with new_files(paths(tmp_path / "a" / "b")) as temporary:
        assert [path.name for path in temporary] == list(NAMES)
        for path in temporary:
            path.write_text("new")
        assert not any(path.exists() for path in paths(tmp_path / "a" / "b"))
    assert contents(tmp_path / "a" / "b") == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_while_writing_leaves_the_old_ones(tmp_path, error):
    def interrupted(**options):
        with new_files(paths(tmp_path), **options) as temporary:
            temporary[0].write_text("new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == {}
    write(tmp_path, "old")
    with pytest.raises(error):
        interrupted(overwrite=True)
    assert contents(tmp_path) == dict.fromkeys(NAMES, "old")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", [(), NAMES, ("k.png", "notes.txt")])
@pytest.mark.parametrize("moves", range(1, 6))
def test_an_interruption_while_renaming_leaves_the_old_ones(tmp_path, monkeypatch, error, old, moves):
    for name in old:
        (tmp_path / name).write_text("old")
    rename, done = Path.rename, []

    def failing(self, target):
        done.append(target)
        if len(done) == moves:
            raise error("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    if moves > 3 + len(set(old) & set(NAMES)):
        write(tmp_path, "new", overwrite=True)
        assert contents(tmp_path) == {**dict.fromkeys(old, "old"), **dict.fromkeys(NAMES, "new")}
        return
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OutputExistsError):
        write(tmp_path, "new", overwrite=True)
    assert contents(tmp_path) == dict.fromkeys(old, "old")


@pytest.mark.parametrize("name", NAMES)
def test_any_existing_file_is_spared_unless_asked(tmp_path, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(OutputExistsError, match=f"{name} exists; pass --overwrite"):
        write(tmp_path, "new")
    assert contents(tmp_path) == {name: "old"}
    write(tmp_path, "new", overwrite=True)
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_what_appears_in_the_meantime_is_spared(tmp_path):
    def overtaken():
        with new_files(paths(tmp_path)) as temporary:
            temporary[0].write_text("new")
            (tmp_path / "k.png").write_text("somebody else's")

    with pytest.raises(OutputExistsError):
        overtaken()
    assert contents(tmp_path) == {"k.png": "somebody else's"}


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "k.png").mkdir()
    with pytest.raises(InputError, match=r"k\.png exists and is not a file"):
        check_files(paths(tmp_path), overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        check_files(paths(tmp_path / "file" / "deeper"), overwrite=False)
    check_files(paths(tmp_path / "new" / "deeper"), overwrite=False)
    assert not (tmp_path / "new").exists()


def test_an_output_is_a_folder_files_or_a_folder_that_grows(tmp_path):
    whole, files = Output(tmp_path / "whole"), Output(tmp_path / "many", NAMES)
    assert files.paths == tuple(paths(tmp_path / "many"))
    for output in (whole, files):
        output.check()
        with output.opened() as folder:
            for name in NAMES:
                (folder / name).write_text("new")
            assert not any(path.exists() for path in output.paths)
        with pytest.raises(OutputExistsError, match="pass --overwrite"):
            output.check()
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {*NAMES, ".ntkfusion"}
    assert contents(tmp_path / "many") == dict.fromkeys(NAMES, "new")
    with Output(tmp_path / "many", grows=True).opened() as folder:
        assert folder == tmp_path / "many"
