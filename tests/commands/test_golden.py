"""Numbers of every command on small models, as they were before the package was rebuilt (tests/stored/golden.json).

A change that is meant to leave numbers alone leaves these alone. One that is not says so, and stores the new ones.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.commands.main import main
from ntkfusion.models.bert.config import BertConfig, RobertaConfig
from ntkfusion.models.gpt2.config import GPT2Config
from tests.helpers.switch_folder import FEW, SENTENCES, save_switch

#: Compiled as for users: rounding moves where descents end.
pytestmark = [pytest.mark.wide, pytest.mark.optimised]

STORED = json.loads((Path(__file__).parents[1] / "stored/golden.json").read_text())
SIZES = {"vocab_size": 30522, "hidden_size": 16}
ENCODER = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24} | {
    "max_position_embeddings": 64
}
MODELS = {
    "tiny": BertConfig(**ENCODER),
    "roberta": RobertaConfig(**ENCODER, head="masked-lm"),
    "gpt2": GPT2Config(**SIZES, n_layer=2, n_head=2, n_positions=64, head="causal-lm"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm):
    """Small random models with MiniLM's tokenizer, sentences, and a table of two classes."""
    folder = tmp_path_factory.mktemp("golden")
    for name, config in MODELS.items():
        model = nf.random_model(config, seed=1)
        nf.save_model(dataclasses.replace(model, tokenizer=minilm.tokenizer), folder / name)
    save_switch(folder / "switch", minilm.tokenizer)
    (folder / "text.txt").write_text("\n".join(SENTENCES))
    rows = [f"{'a good day' if i % 2 else 'the bad film'} number {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


COMPARISONS = {
    "compare_tiny": ("tiny", "--methods", "all", "--width", "0.75", "0.5"),
    "compare_switch": ("switch", "--text", "TEXT", "--methods", "mlp-fusion", "svd", "--width", "0.5"),
    "compare_improved": (
        *("gpt2", "--methods", "mlp-fusion+refit+sgd", "random-neurons+both"),
        *("--width", "0.5", "--allocation", "inertia"),
    ),
}
KERNELS = {
    "kernel_block": ("tiny", "--scope", "block:1", "--tokens", "30"),
    "kernel_sign": ("tiny", "--scope", "block:1", "--kind", "sign", "--tokens", "30"),
    "kernel_mlp": ("roberta", "--scope", "mlp", "--examples", "4"),
    "kernel_net": ("gpt2", "--scope", "network", "--kind", "sign", "--examples", "4"),
    "kernel_switch": ("switch", "--scope", "block:1", "--text", "TEXT", "--tokens", "20"),
}
TRAINING = ("--max-length", "8", "--batch-size", "8", "--epochs", "1", "--learning-rate", "0.01")
RUNS = {
    "finetune": ("tiny", "--compress", "mlp-fusion", "--width", "0.5", "--tune-layers", "--seeds", "0", "1"),
    "finetune_gpt2": (
        *("gpt2", "--freeze", "embeddings/*", "--rates", "*/mlp/*=0.5"),
        *("--no-dropout", "--evaluations", "2", "--format", "none"),
    ),
}


def run(command, folder, words, *more):
    model, *options = (str(folder / "text.txt") if word == "TEXT" else word for word in words)
    main([command, str(folder / model), *options, *map(str, more)])


def close(found, stored):
    """Equal but for rounding: other machines add in other orders."""
    return found == pytest.approx(stored, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", COMPARISONS)
def test_compare(name, folder, tmp_path):
    run("compare", folder, COMPARISONS[name], *FEW, "--out", tmp_path / "out")
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    found = {f"{row['method']} {row['width']:g} {row['layer']}": row for row in rows}
    assert list(found) == list(STORED[name])
    for key, stored in STORED[name].items():
        for field, value in stored.items():
            # several where the sign of a sum that is nearly 0 depends on the machine
            assert any(close(found[key][field], one) for one in (value if isinstance(value, list) else [value])), key


@pytest.mark.parametrize("name", KERNELS)
def test_kernel(name, folder, tmp_path):
    run("kernel", folder, KERNELS[name], "--out", tmp_path / "k.npz")
    arrays = np.load(tmp_path / "k.npz")
    for key, stored in STORED[name].items():
        assert list(arrays[key].shape) == stored["shape"]
        size = float(np.linalg.norm(arrays[key]))
        assert close(size, stored["norm"]), key
        # a sum may cancel: what it is off by is measured against the terms
        assert float(arrays[key].sum()) == pytest.approx(stored["sum"], rel=2e-3, abs=2e-3 * size), key


@pytest.mark.parametrize("name", RUNS)
def test_finetune(name, folder, tmp_path):
    table = folder / "train.csv"
    data = ("--task", "days", "--train", table, "--test", table)
    run("finetune", folder, RUNS[name], *data, *TRAINING, "--out", tmp_path / "out")
    seeds = json.loads((tmp_path / "out/results.json").read_text())["seeds"]
    for found, stored in zip(seeds, STORED[name], strict=True):
        assert found["tuning"] == pytest.approx(stored["tuning"], rel=0.05)
        for key in stored.keys() - {"tuning"}:
            assert close(found[key], stored[key]), key
