"""``ntkfusion compress`` and ``ntkfusion convert`` from the command line to folders that load."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ntkfusion as nf
from ntkfusion.commands.main import main

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm):
    """A small random BERT that reads text, as a Hugging Face folder."""
    model = nf.random_model(nf.BertConfig(**SIZES, vocab_size=30522, max_position_embeddings=64), seed=1)
    path = tmp_path_factory.mktemp("models") / "tiny"
    return nf.save_model(dataclasses.replace(model, tokenizer=minilm.tokenizer), path)


def command(*words):
    main([str(word) for word in words])


def test_compress_saves_what_it_measured(folder, tmp_path, capsys):
    out = tmp_path / "small"
    command("compress", folder, "--method", "mlp-fusion", "--width", "0.5", "--tokens", "64", "--out", out)
    printed = capsys.readouterr().out
    small, model = nf.load_model(out), nf.load_model(folder)
    assert [block.hidden_width for block in small.mlp_blocks()] == [12, 12]
    assert small.tokenizer("a b")["input_ids"] == model.tokenizer("a b")["input_ids"]
    assert "Constants of the neurons were folded" in printed
    assert f"Saved: {out}" in printed
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "- method: mlp-fusion" in card
    assert "- seed: 0" in card
    assert "sgd kernel error" in card
    fused, _ = nf.compress(model, nf.MLPFusion(keep_ratio=0.5), seed=0)
    ids = np.array([[101, 2023, 102]])
    ours = fused.apply(fused.params, input_ids=ids).last_hidden_state
    np.testing.assert_allclose(small.apply(small.params, input_ids=ids).last_hidden_state, ours, atol=1e-6)


def test_own_format_keeps_constants(folder, tmp_path, capsys):
    out = tmp_path / "small"
    words = ("--width", "0.5", "--tokens", "64", "--layers", "1", "--format", "ntkfusion", "--out", out)
    command("compress", folder, "--method", "mlp-fusion", *words)
    assert "folded" not in capsys.readouterr().out
    blocks = nf.load_model(out).mlp_blocks()
    assert [block.hidden_width for block in blocks] == [24, 12]
    assert [block.q is None for block in blocks] == [True, False]


def test_padding_makes_one_width(folder, tmp_path):
    words = ("--width", "0.5", "--tokens", "64", "--layers", "1", "--pad", "--out", tmp_path / "small")
    command("compress", folder, "--method", "structured-pruning", *words)
    assert [block.hidden_width for block in nf.load_model(tmp_path / "small").mlp_blocks()] == [24, 24]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "svd"), "pass --merge to multiply them out to dense ones, or --format ntkfusion"),
        (("--method", "mlp-fusion", "--layers", "0"), "pass --pad to fill them with zero neurons"),
        (("--method", "nonsense"), "unknown method 'nonsense'"),
        (("--method", "mlp-fusion", "--width", "2"), "above 0 and at most 1"),
        (("--method", "mlp-fusion", "--tokens", "1"), "--tokens must be at least 2"),
        (("--method", "mlp-fusion", "--layers", "5"), "layer 5 does not exist"),
    ],
)
def test_requests_that_cannot_work_are_refused_before_the_work(folder, tmp_path, capsys, words, sentence):
    with pytest.raises(SystemExit) as ended:
        command("compress", folder, *words, "--out", tmp_path / "small")
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_an_existing_folder_is_not_replaced(folder, capsys):
    with pytest.raises(SystemExit):
        command("convert", folder, folder)
    assert "pass --overwrite to replace it" in capsys.readouterr().err


def test_convert_gives_an_account_and_the_dtype_asked_for(folder, tmp_path, capsys):
    out = tmp_path / "half"
    command("convert", folder, out, "--dtype", "float16")
    printed = capsys.readouterr().out
    assert "39 tensors read (39 as F32)" in printed
    assert f"Saved: {out} (hf)" in printed
    command("convert", out, tmp_path / "again", "--format", "flax")
    assert "39 tensors read (39 as F16)" in capsys.readouterr().out
    block, half = (nf.load_model(path).mlp_blocks()[0] for path in (folder, tmp_path / "again"))
    np.testing.assert_array_equal(half.w1, np.asarray(block.w1).astype(np.float16))


def test_convert_and_inspect_say_what_was_around_the_tensors_and_take_no_head_when_asked(folder, tmp_path, capsys):
    tensors = load_file(folder / "model.safetensors")
    wrapped = shutil.copytree(folder, tmp_path / "wrapped")
    save_file({f"module.{name}": array for name, array in tensors.items()}, wrapped / "model.safetensors")
    config = json.loads((wrapped / "config.json").read_text())
    (wrapped / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMultipleChoice"]}))
    with pytest.raises(SystemExit):
        main(["convert", str(wrapped), str(tmp_path / "refused")])
    assert "the class BertForMultipleChoice is not modelled" in " ".join(capsys.readouterr().err.split())
    command("convert", wrapped, tmp_path / "bare", "--no-head")
    assert "all names begin with module." in " ".join(capsys.readouterr().out.split())
    assert "found when reading: all names begin with module." in (tmp_path / "bare/README.md").read_text()
    assert nf.load_model(tmp_path / "bare").config.head is None
