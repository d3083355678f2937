"""The public names: a snapshot that changes on purpose only, and every name leads to something documented."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ntkfusion as nf

STORED = Path(__file__).parent / "stored/public_names.json"
NAMESPACES = ("checkpoints", "clustering", "compression", "data", "kernels", "models", "theory", "training")


def public_names():
    """Namespace → its names; the flat ones under ""."""
    return {"": sorted(nf.__all__), **{name: sorted(getattr(nf, name).__all__) for name in NAMESPACES}}


def test_public_names_are_those_of_the_snapshot():
    """To change them: ``python -m tests.test_public_api`` writes the snapshot anew; CHANGELOG.md says why."""
    assert public_names() == json.loads(STORED.read_text())


@pytest.mark.parametrize("namespace", ["", *NAMESPACES])
def test_every_name_is_there_and_documented(namespace):
    module = getattr(nf, namespace) if namespace else nf
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name


def test_names_of_the_first_hour_are_the_same_objects_in_their_namespaces():
    for namespace in NAMESPACES:
        module = getattr(nf, namespace)
        for name in {*module.__all__} & {*nf.__all__}:
            assert getattr(module, name) is getattr(nf, name)


def test_names_are_imported_when_they_are_used():
    code = "import sys, ntkfusion; assert 'jax' not in sys.modules; ntkfusion.MLPBlock; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    STORED.write_text(json.dumps(public_names(), indent=1) + "\n")
