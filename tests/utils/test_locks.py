"""Two processes never write one folder over time, and a dead one is in nobody's way."""

from __future__ import annotations

import re
import signal
import threading
from pathlib import Path

import pytest

from ntkfusion.errors import OutputBusyError
from ntkfusion.utils.files import Output, new_folder
from ntkfusion.utils.locks import Holder, alone, hold, lock_file
from tests.helpers.lock_holder import held_by_another

pytest.importorskip("fcntl")


def test_a_folder_that_another_process_writes_is_refused_with_its_name(tmp_path):
    with held_by_another(tmp_path / "out") as process:
        with pytest.raises(OutputBusyError) as caught, Output(tmp_path / "out", grows=True).reserved():
            pass
        since = r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.search(rf"out is being written by process {process.pid} {since} \(-c ", str(caught.value))
    with Output(tmp_path / "out", grows=True).reserved():
        assert lock_file(tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_process_is_gone_is_taken_over(tmp_path):
    with held_by_another(tmp_path / "new" / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert lock_file(tmp_path / "new" / "out").exists()
    hold(tmp_path / "new" / "out")()
    assert not list((tmp_path / "new").iterdir())


def test_links_lead_to_the_same_lock(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with held_by_another(tmp_path / "link"), pytest.raises(OutputBusyError):
        hold(tmp_path / "out")


def test_a_process_may_take_its_own_lock_again(tmp_path):
    releases = [hold(tmp_path / "out") for _ in range(2)]
    for release in releases:
        assert lock_file(tmp_path / "out").exists()
        release()
        release()
    assert not list(tmp_path.iterdir())


def test_folders_made_for_a_lock_go_with_it_unless_they_are_used(tmp_path):
    release = hold(tmp_path / "a" / "b" / "out")
    release()
    assert not list(tmp_path.iterdir())
    release = hold(tmp_path / "a" / "b" / "out")
    (tmp_path / "a" / "result").touch()
    release()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_threads_wait_for_each_other(tmp_path):
    inside, most = 0, []

    def work():
        nonlocal inside
        for _ in range(50):
            with alone(tmp_path / "file"):
                inside += 1
                most.append(inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert not list(tmp_path.iterdir())


def release_alone(path):
    with alone(path):
        pass


@pytest.mark.parametrize("take", [lambda path: hold(path)(), release_alone])
def test_ctrl_c_while_a_lock_is_deleted_leaves_no_lock(tmp_path, monkeypatch, take):
    """The process lives on, as a notebook does: it would wait for itself for ever."""
    unlink, interrupts = Path.unlink, [KeyboardInterrupt]

    def interrupted(self, missing_ok=False):
        if interrupts:
            raise interrupts.pop()
        return unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with alone(tmp_path / "out"):
        assert lock_file(tmp_path / "out").exists()
    assert not list(tmp_path.iterdir())


def test_a_holder_on_another_machine_is_named_with_it():
    here = Holder.this_process()
    assert " on " not in str(here)
    assert "process 7 on elsewhere since now (ntkfusion)" in str(Holder(7, "elsewhere", "now", "ntkfusion"))


def test_overwriting_a_folder_waits_for_nobody_who_writes_into_it(tmp_path):
    """A run that fills its folder is not replaced in the middle by a report that may overwrite."""
    with new_folder(tmp_path / "out") as written:
        (written / "result").write_text("old")
    with held_by_another(tmp_path / "out"):
        with pytest.raises(OutputBusyError), new_folder(tmp_path / "out", overwrite=True):
            pass
        assert (tmp_path / "out" / "result").read_text() == "old"
    with new_folder(tmp_path / "out", overwrite=True) as written:
        (written / "result").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
