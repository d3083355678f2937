"""Result folders are whole or not there."""

from __future__ import annotations

import pytest

from ntkfusion.errors import OutputExistsError
from ntkfusion.folders import MARKER, new_folder


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


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "result").read_text() == "new"
