"""The README says nothing that does not run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

import ntkfusion as nf
from ntkfusion.commands.main import Options
from ntkfusion.compression.registry import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.wide
def test_python_examples_run(capsys):
    code = "".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "KernelDistance(relative_frobenius=" in out
    assert "(2, 9, 384)" in out
    assert "at most (result 64 B), 2 at a time" in out
    assert "{'MLP': (2, 2, 2, 2), 'rest': (2, 2, 2, 2)}" in out


def test_commands_are_understood():
    blocks = [text for language, text in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if not language]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if "ntkfusion " in line.partition("#")[0]]
    for words in commands:
        assert tyro.cli(Options, args=words[words.index("ntkfusion") + 1 :])  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert len(commands) > 10


@pytest.mark.wide
def test_the_script_of_the_theory_checks_bounds(capsys):
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "theory.md").read_text("utf-8"), re.DOTALL))
    exec(compile(code, "theory.md", "exec"), {})
    assert 1 <= float(capsys.readouterr().out.split("measured ")[1].split("\n")[0]) < 10


@pytest.mark.slow
def test_the_training_page_runs(tmp_path, monkeypatch, capsys):
    rows = [f"an {word} film {number},{word}" for number in range(20) for word in ("awful", "admirable")]
    (tmp_path / "reviews.csv").write_text("\n".join(["sentence,mood", *rows]))
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text("utf-8"), re.DOTALL))
    exec(compile(code, "training.md", "exec"), {})
    assert "accuracy" in capsys.readouterr().out
    assert nf.load_model(str(tmp_path / "reviews-model")).config.num_labels == 2


def test_every_link_leads_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), (document, target)


def test_table_shows_every_method_that_compare_runs_unasked():
    assert all(f"| {name} |" in README for name, entry in METHODS.items() if entry.default)
