"""Every command that writes, in trouble: no room, two at once, Ctrl-C, a dead process. One sentence, nothing in halves.

A new command joins by its entry in `ntkfusion.commands.main`; a small value for an option that no other command has
belongs into `tests/helpers/abused_command.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ntkfusion
from tests.helpers.abused_command import can_resume, inputs_in, words, writers

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of Unix")
every_writer = pytest.mark.parametrize("name", writers())
#: A file system of its own, which takes rights that not everyone has.
SMALL_DISK = "mount -t tmpfs -o size=64m tmpfs disk && cp -r tiny train.csv disk && cd disk && exec "
has_small_disks = (
    shutil.which("unshare") is not None
    and not subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /tmp"], capture_output=True, check=False
    ).returncode
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, minilm):
    """A small model and a table."""
    folder = tmp_path_factory.mktemp("inputs")
    inputs_in(folder, minilm.tokenizer)
    return folder


@pytest.fixture
def place(inputs, tmp_path):
    """A folder with the inputs."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def start(place, *call, before=()):
    """A process in that folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([*before, sys.executable, *call], cwd=place, env=environment, stdout=pipe, stderr=pipe)


def abuse(place, *call, before=()):
    """What `tests.helpers.abused_command` tells."""
    process = start(place, "-m", "tests.helpers.abused_command", *call, before=before)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def is_sentence(text):
    """One line of ours."""
    return text.startswith("ntkfusion: ") and text.count("\n") == 1 and "Traceback" not in text


def assert_survived(name, tried, *, fails):
    """The command in trouble failed with one sentence and left nothing in halves; the next one gives all of it."""
    during, later, first = tried["during"], tried["after"], tried["first"]
    assert first["code"] == later["code"] == 0, (first, later)
    assert during["code"] in fails, during
    assert during["code"] == 0 or is_sentence(during["said"]), during
    if during["code"] and not can_resume(name):
        # whole if Ctrl-C came behind the last rename, else not there; no temporary folder and no lock
        is_whole = during["code"] == 130 and during["left"]
        assert during["left"] == (first["left"] if is_whole else []), during
        assert during["files"] == (first["files"] if is_whole else []), during
    assert later["left"] == first["left"]
    assert later["weights"] == first["weights"]


@pytest.mark.wide
@every_writer
def test_files_that_cannot_grow_are_one_sentence(name, place):
    tried = abuse(place, name, "limits")
    for each in tried:
        assert_survived(name, each, fails=(0, 2))
    assert "could not be written: File too large" in tried[0]["during"]["said"]


@pytest.mark.wide
@pytest.mark.skipif(not has_small_disks, reason="needs the right to mount")
@every_writer
def test_a_full_disk_is_one_sentence_and_room_is_all_it_takes(name, place):
    (place / "disk").mkdir()
    command = f'{SMALL_DISK} "$@"'
    tried = abuse(place, name, "full", before=("unshare", "-rm", "sh", "-c", command, "sh"))
    for each in tried:
        assert_survived(name, each, fails=(2,))
        assert "No space left on device" in each["during"]["said"]


@pytest.mark.wide
@every_writer
def test_ctrl_c_while_writing_leaves_nothing_in_halves(name, place):
    for each in abuse(place, name, "interrupts"):
        assert_survived(name, each, fails=(0, 130))
        assert each["during"]["code"] == 130 or each["during"]["files"] == each["first"]["files"]


@pytest.mark.wide
@every_writer
def test_a_killed_process_leaves_whole_files_and_no_lock(name, place):
    """Each file is whole or not there, and nothing is in the way of the next run."""
    told = abuse(place, name, "count")
    outs = [f"out{moment}" for moment in told["moments"]]
    for moment, out in zip(told["moments"], outs, strict=True):
        process = start(place, "-m", "tests.helpers.abused_command", name, "kill", str(moment), out)
        assert process.wait(timeout=500) == -9, process.communicate()
    for out, found in zip(outs, abuse(place, name, "after", *outs), strict=True):
        assert found["code"] == 0, found
        assert found["weights"] == told["first"]["weights"]
        locks = [left for left in found["left"] if left.endswith(".lock")]
        assert not [lock for lock in locks if lock.startswith((f".{out}.", f".{out}_"))]


@pytest.mark.wide
@every_writer
def test_two_at_once_give_one_result_and_one_sentence(name, place):
    both = [start(place, "-m", "ntkfusion", *words(name, "out")) for _ in range(2)]
    ends = [(process.communicate(timeout=500)[1].decode(), process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    refusal = next(text for text, code in ends if code == 2)
    assert is_sentence(refusal)
    if can_resume(name):
        assert f"out is being written by process {next(p.pid for p in both if p.returncode == 0)} since 20" in refusal
    left = {path.name for path in place.iterdir()} - {"tiny", "train.csv"}
    assert not [path for path in left if path.startswith(".")]


@pytest.mark.wide
@pytest.mark.parametrize("call", [["inspect", "tiny"], ["convert", "tiny", "out"], ["--version"], ["--help"]])
def test_a_full_standard_output_is_one_sentence(call, place):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ntkfusion", *call],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, is_sentence(done.stderr)) == (2, True), done.stderr
    assert "standard output could not be written: No space left on device" in done.stderr
    if "out" in call:
        assert done.stderr.endswith("The results are whole: out\n")
        assert ntkfusion.load_model(place / "out").num_parameters


@pytest.mark.wide
@pytest.mark.parametrize("call", [["inspect", "tiny"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(call, place):
    """As ``| head -1``: the pipe is closed before anything is printed."""
    process = start(place, "-m", "ntkfusion", *call)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=200) == 0
