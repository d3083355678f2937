"""Every command has the same four functions, and `main` treats all of them alike."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import tyro

from ntkfusion.commands import main as program
from ntkfusion.commands import terminal
from ntkfusion.commands.main import MODULES, Options, load_command, main
from ntkfusion.commands.protocol import Command
from ntkfusion.errors import InputError
from ntkfusion.utils.files import Output

#: The least that each command takes.
LEAST = {
    "compare": [],
    "compress": ["minilm", "--method", "svd"],
    "convert": ["minilm", "out"],
    "finetune": ["minilm", "--task", "sst2"],
    "inspect": ["minilm"],
    "kernel": [],
    "verify": [],
}
HEAVY = ("jax", "jaxlib", "flax", "transformers", "numpy", "matplotlib", "scipy", "torch", "optax")


def imported(code: str) -> list[str]:
    """Heavy modules that a fresh process has after some code."""
    code += f"\nimport sys\nprint('HEAVY', sorted(set({HEAVY}) & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return eval(finished.stdout.rsplit("HEAVY", 1)[1])


def test_help_and_version_import_nothing_heavy():
    """Of every command, one after the other in one process: it starts as often as there are cores to wait for."""
    words = [["--help"], ["--version"], *([name, "--help"] for name in LEAST)]
    code = "from ntkfusion.commands.main import main\n" + "".join(
        f"try:\n    main({one})\nexcept SystemExit as ending:\n    assert not ending.code\n" for one in words
    )
    assert imported(code) == []


def test_reporting_and_options_need_no_jax():
    folder = Path(program.__file__).parents[1] / "reporting"
    modules = [f"ntkfusion.reporting.{path.stem}" for path in folder.glob("*.py")]
    assert not {"jax", "jaxlib", "flax", "transformers"} & {*imported(f"import {', '.join(modules)}")}


@pytest.mark.parametrize("options", MODULES, ids=lambda options: options.__name__.lower())
def test_every_command_has_the_four_functions(options):
    command = load_command(options)
    parameters = {
        "plan": ["options"],
        "run": ["plan", "progress"],
        "write": ["result", "folder"],
        "show": ["result", "console"],
    }
    for name, expected in parameters.items():
        function = getattr(command, name)
        assert list(inspect.signature(function).parameters) == expected
        assert function.__module__.startswith(f"ntkfusion.commands.{options.__name__.lower()}.")
        homes = [module for module in MODULES[options] if f"ntkfusion.commands.{module}" == function.__module__]
        assert len(homes) == 1


def test_every_command_of_the_line_has_modules():
    kinds = [get_args(each)[0] for each in get_args(Options)]
    assert {kind.__name__.lower() for kind in kinds} == {*LEAST}
    assert [*MODULES] == kinds


@dataclasses.dataclass(frozen=True)
class Planned:
    output: Output | None
    steps: int | None = 2


@dataclasses.dataclass(frozen=True)
class Done:
    text: str = "done"
    passed: bool = True


def fake(monkeypatch, output, *, steps=2, result=None, during=lambda name: None):
    """Replaces every command by one that says when it is called."""
    called = []

    def note(name, value=None):
        called.append(name)
        during(name)
        return value

    def write(result, folder):
        (folder / "result").write_text(result.text)
        note("write")

    command = Command(
        plan=lambda options: note("plan", Planned(output, steps)),
        run=lambda plan, progress: progress.advance("working", 0) or note("run", result or Done()),
        write=write,
        show=lambda result, console: note("show"),
    )
    monkeypatch.setattr(program, "load_command", lambda options: command)
    return called


def call(name):
    """The exit code of a command with the least that it takes."""
    try:
        main([name, *LEAST[name]])
    except SystemExit as ending:
        return ending.code
    return 0


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("steps", [2, None])
def test_main_plans_runs_writes_and_shows(monkeypatch, tmp_path, name, steps):
    called = fake(monkeypatch, Output(tmp_path / "out"), steps=steps)
    assert call(name) == 0
    assert called == ["plan", "run", "write", "show"]
    assert (tmp_path / "out" / "result").read_text() == "done"


@pytest.mark.parametrize("name", LEAST)
def test_what_is_only_printed_is_not_written(monkeypatch, name):
    called = fake(monkeypatch, None)
    assert call(name) == 0
    assert called == ["plan", "run", "show"]


@pytest.mark.parametrize("name", LEAST)
def test_a_result_that_did_not_pass_ends_with_1(monkeypatch, tmp_path, name):
    called = fake(monkeypatch, Output(tmp_path / "out"), result=Done(passed=False))
    assert call(name) == 1
    assert called == ["plan", "run", "write", "show"]


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("moment", ["plan", "run", "write"])
def test_bad_input_is_one_sentence_and_leaves_nothing(monkeypatch, tmp_path, capsys, name, moment):
    def refuse(now):
        if now == moment:
            raise InputError("no")

    fake(monkeypatch, Output(tmp_path / "out"), during=refuse)
    assert call(name) == 2
    assert capsys.readouterr().err == "ntkfusion: no\n"
    assert not list(tmp_path.iterdir())


#: What a full disk sounds like: from Python, from Rust (tokenizers), from C++ (tensorstore).
FULL = {
    "python": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/file"),
    "rust": RuntimeError("No space left on device (os error 28)"),
    "c++": ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"),
}


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("moment", ["plan", "run", "write"])
@pytest.mark.parametrize("voice", FULL)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(monkeypatch, tmp_path, capsys, name, moment, voice):
    def fail(now):
        if now == moment:
            raise FULL[voice]

    called = fake(monkeypatch, Output(tmp_path / "out"), during=fail)
    assert call(name) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert (said.startswith("ntkfusion: "), said.count("\n")) == (True, 1)
    assert "show" not in called
    assert not list(tmp_path.iterdir())
    if moment == "write":
        assert said.startswith(f"ntkfusion: output folder {tmp_path / 'out'} could not be written: ")
        assert said.endswith("; --resume goes on with it\n") == (name == "finetune")


@pytest.mark.parametrize("name", LEAST)
def test_mistakes_of_the_program_keep_their_traceback(monkeypatch, tmp_path, name):
    def fail(now):
        if now == "run":
            raise ZeroDivisionError

    fake(monkeypatch, Output(tmp_path / "out"), during=fail)
    with pytest.raises(ZeroDivisionError):
        call(name)


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("lost", [BrokenPipeError(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_what_cannot_be_printed_is_still_written(monkeypatch, tmp_path, capsys, name, lost):
    """A reader that has gone is no error, a full disk is; neither takes the results away."""

    def fail(now):
        if now == "show":
            raise lost

    monkeypatch.setattr(terminal, "give_up", lambda stream: None)
    fake(monkeypatch, Output(tmp_path / "out"), during=fail)
    gone = isinstance(lost, BrokenPipeError)
    assert call(name) == (0 if gone else 2)
    where = f"standard output could not be written: No space left on device. The results are whole: {tmp_path / 'out'}"
    assert capsys.readouterr().err == ("" if gone else f"ntkfusion: {where}\n")
    assert (tmp_path / "out" / "result").read_text() == "done"


def test_a_reader_that_has_gone_does_not_hide_a_failed_check(monkeypatch, tmp_path):
    def fail(now):
        if now == "show":
            raise BrokenPipeError

    monkeypatch.setattr(terminal, "give_up", lambda stream: None)
    fake(monkeypatch, Output(tmp_path / "out"), result=Done(passed=False), during=fail)
    assert call("verify") == 1


def test_rich_does_not_end_the_process_when_the_reader_goes():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        terminal.Terminal(file=Gone()).print("a line")


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("moment", ["plan", "run", "write"])
@pytest.mark.parametrize("lost", [False, True])
def test_ctrl_c_ends_with_130_and_leaves_nothing(monkeypatch, tmp_path, capsys, name, moment, lost):
    """Also if Python dropped the exception, as it does in callbacks of the garbage collector."""

    def interrupt(now):
        if now != moment:
            return
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not lost:
                raise

    called = fake(monkeypatch, Output(tmp_path / "out"), during=interrupt)
    assert call(name) == 130
    more = "; --resume goes on with it" if name == "finetune" else ""
    assert capsys.readouterr().err == f"ntkfusion: interrupted, nothing is left half-written{more}\n"
    assert "show" not in called
    assert not list(tmp_path.iterdir())


def test_a_folder_that_grows_keeps_what_is_there(monkeypatch, tmp_path):
    def interrupt(now):
        if now == "write":
            raise KeyboardInterrupt

    (tmp_path / "seed-0").mkdir()
    fake(monkeypatch, Output(tmp_path, grows=True), steps=None, during=interrupt)
    assert call("finetune") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result", "seed-0"]


@pytest.mark.parametrize(("words", "kept"), [([], True), (["--compress", "svd"], False)])
def test_fine_tuning_keeps_freed_memory_before_jax_is_there(monkeypatch, words, kept):
    order = []
    monkeypatch.setattr(program, "keep_freed_memory", lambda: order.append("memory"))
    monkeypatch.setattr(program, "load_command", lambda options: order.append("imports") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["finetune", *LEAST["finetune"], *words])
    assert order == ["memory"] * kept + ["imports"]


def test_least_is_enough():
    for name, words in LEAST.items():
        assert type(tyro.cli(Options, args=[name, *words])).__name__.lower() == name
