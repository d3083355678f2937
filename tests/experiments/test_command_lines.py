"""Every experiment is a folder that Python runs, from the repository's root, as a folder and as a module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    str(path.parent.relative_to(ROOT)) for path in (ROOT / "experiments").rglob("__main__.py")
)  # fmt: skip


def text_of(*words):
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_experiment_is_there():
    benchmarks = [f"experiments/benchmarks/{name}" for name in ("clustering", "kernels", "loading", "training")]
    names = ("bound_tightness", "kernel_distance", "kernel_vs_finetuning")
    assert [*benchmarks, *(f"experiments/{name}" for name in names)] == FOLDERS
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for folder in FOLDERS:
        assert f" {folder}" in readme, f"experiments/README.md lacks the command of {folder}"


@pytest.mark.wide
def test_help_of_a_folder_and_of_a_module():
    as_folder = text_of("experiments/bound_tightness")
    assert as_folder.startswith("usage: experiments/bound_tightness")
    assert "--bert-tiny" in as_folder
    assert "--bert-tiny" in text_of("-m", "experiments.bound_tightness")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_help_of_every_experiment(folder):
    assert text_of(folder).startswith(f"usage: {folder}")
    assert "-h, --help" in text_of("-m", folder.replace("/", "."))
