"""Commands on folders as people have them: sentence-transformers' files, adapters, tokenizers that cannot be loaded."""

from __future__ import annotations

import importlib.util
import json

import pytest

import ntkfusion as nf
from ntkfusion.commands.main import main
from tests.helpers.sentence_folder import files_in, save_sentence_folder


def command(*words):
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """The folder, and what is to be kept of it."""
    folder = tmp_path_factory.mktemp("models") / "sentences"
    return folder, save_sentence_folder(folder)


@pytest.mark.parametrize("kind", ["hf", "flax", "ntkfusion"])
def test_convert_keeps_sentence_transformers_files(sentences, tmp_path, capsys, kind):
    folder, expected = sentences
    command("convert", folder, tmp_path / "out", "--format", kind)
    assert expected.items() <= files_in(tmp_path / "out").items()
    printed = capsys.readouterr().out
    assert "Copied as they were: 1_Pooling/config.json" in printed
    assert (
        "Left behind: 2_Dense/pytorch_model.bin, pytorch_model.bin, training_args.bin, vocabulary (it is a pickle"
        in printed
    )
    assert "onnx/" in printed


def test_compress_keeps_sentence_transformers_files(sentences, tmp_path, capsys):
    folder, expected = sentences
    words = ("--method", "structured-pruning", "--width", "0.5", "--tokens", "16", "--calibration-tokens", "16")
    command("compress", folder, *words, "--out", tmp_path / "out")
    assert expected.items() <= files_in(tmp_path / "out").items()
    assert nf.load_model(tmp_path / "out").mlp_blocks()[0].hidden_width == 12
    printed = capsys.readouterr().out
    assert "Copied as they were: 1_Pooling/config.json" in printed
    assert "Changed" not in printed


@pytest.fixture
def albert(tmp_path, monkeypatch):
    """An ALBERT whose tokenizer is a SentencePiece model, where nothing can read that."""
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = nf.models.AlbertConfig(**sizes, intermediate_size=24, vocab_size=30, max_position_embeddings=64)
    folder = nf.save_model(nf.random_model(config), tmp_path / "albert")
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name))
    return folder


def test_convert_needs_no_tokenizer(albert, tmp_path):
    command("convert", albert, tmp_path / "out")
    assert (tmp_path / "out" / "spiece.model").read_bytes() == (albert / "spiece.model").read_bytes()


@pytest.mark.parametrize("name", [pytest.param("inspect", marks=pytest.mark.wide), "compress"])
def test_commands_that_can_do_without_tokenizer(albert, tmp_path, capsys, name):
    words = ["--method", "structured-pruning", "--out", tmp_path / "out"] if name == "compress" else []
    with pytest.raises(SystemExit):
        command(name, albert, *words)
    assert "needs the extra `sentencepiece`" in capsys.readouterr().err
    command(name, albert, *words, "--no-tokenizer")
    printed = capsys.readouterr().out
    if name == "compress":
        assert "Nothing was measured: the model was loaded without its tokenizer" in printed
        assert (tmp_path / "out" / "spiece.model").exists()
    else:
        assert "tokenizer not loaded" in printed


#: Command → its words behind the model.
COMMANDS = {
    "compare": ("--tokens", "16"),
    "compress": ("--method", "structured-pruning"),
    "convert": ("out",),
    "finetune": ("--task", "own", "--train", "own.csv"),
    "inspect": (),
    "kernel": ("--scope", "block:0"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_ignores_an_adapter_silently(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    save_sentence_folder(tmp_path / "model", harmful=False)
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "own.csv").write_text("text,label\n" + "a b c,0\nd e f,1\n" * 20)
    with pytest.raises(SystemExit) as ended:
        command(name, "model", *COMMANDS[name])
    assert ended.value.code == 2
    assert "adapter (adapter_config.json) beside the base weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapter_is_ignored_when_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = save_sentence_folder(tmp_path / "model", harmful=False)
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    command("convert", "model", "out", "--ignore-adapter")
    assert expected.items() <= files_in(tmp_path / "out").items()
    assert "Left behind: adapter_config.json (it belongs to an adapter, which was ignored)" in capsys.readouterr().out
    assert "--ignore-adapter" in (tmp_path / "out" / "README.md").read_text()
