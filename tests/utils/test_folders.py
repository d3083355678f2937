"""Result folders are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ntkfusion.errors import InputError, OutputExistsError
from ntkfusion.utils.files import MARKER, check_output, new_folder


def write(folder, text, **options):
    with new_folder(folder, **options) as written:
        (written / "result").write_text(text)


def test_a_new_folder_appears_whole(tmp_path):
    write(tmp_path / "deep" / "out", "one")
    assert {file.name for file in (tmp_path / "deep" / "out").iterdir()} == {"result", MARKER}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def fail(folder, error):
    with new_folder(folder, overwrite=True) as written:
        (written / "result").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_result_and_nothing_else(tmp_path, error):
    write(tmp_path / "out", "old")
    with pytest.raises(error):
        fail(tmp_path / "out", error)
    assert (tmp_path / "out" / "result").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").touch()
    write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "result").read_text() == "new"
    assert not (tmp_path / "out" / "extra").exists()


def test_existing_results_are_not_overwritten_by_accident(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(OutputExistsError, match="pass --overwrite"), new_folder(tmp_path / "out"):
        pass


def test_dots_do_not_lead_around_the_check(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError):
        write(tmp_path / "typo" / ".." / "thesis", "new")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "precious"


def appear_meanwhile(folder):
    with new_folder(folder) as written:
        (written / "result").touch()
        folder.mkdir()
        (folder / "theirs").touch()


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputExistsError):
        appear_meanwhile(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_between_the_renames_brings_the_old_result_back(tmp_path, monkeypatch, error):
    write(tmp_path / "out", "old")
    rename = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise error(13, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((KeyboardInterrupt, OutputExistsError)):
        write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "result").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["broken", "x" * 300, "file/out"])
def test_impossible_places_are_refused_at_once(tmp_path, place):
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output folder"):
        check_output(tmp_path / place, overwrite=False)


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "result").read_text() == "new"
