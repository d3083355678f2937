"""`ntkfusion kernel` on the real model: the numbers of the library, whole files, and one sentence for nonsense."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.commands.kernel.options import Kernel
from ntkfusion.commands.kernel.problem import network_function, parameter_groups
from ntkfusion.commands.kernel.run import output_files, plan, run
from ntkfusion.commands.main import main
from ntkfusion.reporting.kernel_file import load_kernel_file
from ntkfusion.utils.parameter_paths import group_parameters, parameter_paths
from ntkfusion.utils.progress import Progress
from tests.helpers.blocks import relative

TINY = ("--examples", "3", "--max-length", "6")
HEAD = nf.BertConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=12,
    num_labels=3,
    initializer_range=0.5,
)


def run_kernel(capsys, *arguments):
    """Exit code, standard output and standard error."""
    code = 0
    try:
        main(["kernel", "minilm", *(str(argument) for argument in arguments)])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The folder with the files of one network kernel, made once: it compiles for seconds."""
    folder = tmp_path_factory.mktemp("network")
    main(["kernel", "minilm", *TINY, "--reference", "--out", str(folder / "k.npz")])
    return folder


def function(model, directions):
    def f(params, example):
        out = model.apply(params, input_ids=example["ids"][None], attention_mask=example["mask"][None])
        return out.last_hidden_state[0, 0] @ directions

    return f


def test_block_is_the_closed_form(tmp_path, capsys, minilm):
    out = tmp_path / "k.npz"
    code, printed, err = run_kernel(capsys, "--scope", "block:3", "--kind", "sign", "--tokens", 9, "--out", out)
    assert (code, err) == (0, "")
    file = load_kernel_file(out)
    x = jnp.asarray(file.inputs["block_inputs"])
    with jax.default_matmul_precision("highest"):
        expected = nf.block_kernel(minilm.mlp_blocks()[3], x, kind="sign", by_parameter=True)
    assert list(file.groups) == ["w1", "b1", "w2", "b2"]
    assert file.kernel.shape == (9, 9)
    for name, part in expected.items():
        assert relative(file.groups[name], part) <= 1e-6
    np.testing.assert_array_equal(sum(file.groups.values()), file.kernel)
    assert len(file.labels) == 9
    assert "leading singular values" in printed
    assert "sign kernel of minilm, block 3, 9 tokens: 9 × 9" in printed


@pytest.mark.wide
def test_block_inputs_are_those_that_compare_holds_out(minilm):
    from ntkfusion.commands.compare.options import Compare
    from ntkfusion.commands.compare.run import plan as plan_comparison

    file = run(plan(Kernel(scope="block:2", tokens=7, words_only=True, seed=5)), Progress()).file
    held_out = plan_comparison(Compare(seed=5)).split.held_out
    expected = nf.collect_block_inputs(minilm, held_out, max_tokens=7, seed=5, special_tokens=False)
    assert file.labels == expected.tokens
    np.testing.assert_array_equal(file.inputs["block_inputs"], expected.inputs[2])
    assert file.sentences == tuple(held_out)


def test_network_is_the_network_kernel(network, minilm):
    file = load_kernel_file(network / "k.npz")
    directions = file.inputs["readout_directions"]
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, rtol=1e-6)
    ids = minilm.tokenizer(list(file.sentences), truncation=True, max_length=6, padding=True)["input_ids"]
    np.testing.assert_array_equal(file.inputs["input_ids"], ids)
    examples = {"ids": jnp.asarray(ids, jnp.int32), "mask": jnp.asarray(np.array(ids) != 0, jnp.int32)}
    ours = nf.network_kernel(function(minilm, directions), minilm.params, examples)
    assert file.kernel.shape == (3, 3, 2, 2)
    assert relative(file.kernel, ours) <= 1e-5
    np.testing.assert_array_equal(sum(file.groups.values()), file.kernel)
    assert list(file.groups) == ["embeddings", *(f"layer_{index}" for index in range(6)), "head"]
    assert not file.groups["head"].any()
    assert all(np.trace(part[..., 0, 0]) > 0 for name, part in file.groups.items() if name != "head")


def test_network_agrees_with_neural_tangents(network):
    reference = load_kernel_file(network / "k.npz").conditions["reference"]
    assert 0 < reference["relative_frobenius"] <= 1e-4
    assert reference["seconds"] > 0


@pytest.mark.wide
def test_mlp_scope_has_the_blocks_only(tmp_path, capsys, minilm):
    out = tmp_path / "k.npz"
    code, printed, _ = run_kernel(capsys, "--scope", "mlp", "--examples", 2, "--max-length", 5, "--out", out)
    assert code == 0
    file = load_kernel_file(out)
    examples = {"ids": file.inputs["input_ids"], "mask": file.inputs["attention_mask"]}
    f = function(minilm, file.inputs["readout_directions"])
    assert relative(file.kernel, nf.network_kernel(f, minilm.params, examples, select="*/mlp/*")) <= 1e-5
    assert list(file.groups) == [f"layer_{index}" for index in range(6)]
    assert "SGD kernel of minilm, all MLP blocks, 2 sentences: 2 × 2 × 2 × 2" in printed


@pytest.mark.wide
def test_a_classification_head_is_read_as_it_is():
    model = nf.random_model(HEAD)
    f, readout, directions = network_function(model, 2, 0)
    ids, mask = jnp.array([3, 4, 0], jnp.int32), jnp.array([1, 1, 0], jnp.int32)
    logits = model.apply(model.params, input_ids=ids[None], attention_mask=mask[None]).logits[0]
    np.testing.assert_array_equal(f(model.params, {"input_ids": ids, "attention_mask": mask}), logits)
    assert (readout, directions) == ("3 logits", {})
    paths = parameter_paths(model.params)
    group_of = group_parameters(paths, None, parameter_groups(model, "network"))
    heads = {path.split("/")[0] for leaf, path in enumerate(paths) if group_of[leaf] == "head"}
    assert heads == {"pooler", "classifier"}
    assert set(group_of.values()) == {"embeddings", "layer_0", "head"}
    blocks = group_parameters(paths, None, parameter_groups(model, "mlp"))
    assert sorted(paths[leaf] for leaf in blocks) == [f"layer_0/mlp/{name}" for name in ("b1", "b2", "w1", "w2")]


def test_conditions_tell_how_to_repeat_it(network):
    conditions = load_kernel_file(network / "k.npz").conditions
    out = network / "k.npz"
    assert conditions["command"] == f"ntkfusion kernel minilm --examples 3 --max-length 6 --reference --out {out}"
    assert (conditions["scope"], conditions["kind"], conditions["seed"]) == ("network", "sgd", 0)
    assert (conditions["examples"], conditions["length"], conditions["text"]) == (3, 6, "packaged sample")
    assert conditions["readout"].startswith("2 random unit directions (seed 0)")
    assert conditions["model"]["num_parameters"] == 22_713_216
    assert conditions["environment"]["jax"] == jax.__version__
    assert 0 < conditions["memory"]["peak"] <= conditions["memory"]["limit"]


def test_three_files_and_nothing_else(network):
    assert sorted(path.name for path in network.iterdir()) == ["k.npz", "k.png", "k_spectrum.png"]


@pytest.mark.parametrize("name", ["k.npz", "k.png", "k_spectrum.png"])
def test_existing_files_are_spared_unless_asked(tmp_path, capsys, name):
    arguments = ("--scope", "block:0", "--tokens", 2, "--out", tmp_path / "k.npz")
    (tmp_path / name).write_text("old")
    code, printed, err = run_kernel(capsys, *arguments)
    assert (code, printed) == (2, "")
    assert f"{name} exists; pass --overwrite to replace it, or another --out\n" in err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    if name == "k.png":
        assert run_kernel(capsys, *arguments, "--overwrite")[0] == 0
        assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_interrupting_leaves_the_old_files_or_nothing(tmp_path, capsys, monkeypatch, overwrite):
    def interrupted(figure, path):
        raise KeyboardInterrupt

    if overwrite:
        (tmp_path / "k.npz").write_text("old")
    monkeypatch.setattr("ntkfusion.commands.kernel.run.save_png", interrupted)
    code, _, err = run_kernel(capsys, "--scope", "block:0", "--tokens", 2, "--out", tmp_path / "k.npz", *overwrite)
    assert (code, err) == (130, "ntkfusion: interrupted, nothing is left half-written\n")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"] * len(overwrite)


def test_reference_of_a_block(tmp_path, capsys):
    out = tmp_path / "k.npz"
    code, printed, _ = run_kernel(capsys, "--scope", "block:1", "--tokens", 4, "--reference", "--out", out)
    assert code == 0
    assert load_kernel_file(out).conditions["reference"]["relative_frobenius"] <= 1e-4
    assert "neural-tangents: relative Frobenius difference" in printed


def test_files_are_named_after_what_they_hold():
    names = [path.as_posix() for path in output_files(Kernel(model="some/model", scope="block:3", kind="sign")).paths]
    stem = "results/kernel-model-block-3-sign"
    assert names == [f"{stem}.npz", f"{stem}.png", f"{stem}_spectrum.png"]


NONSENSE = [
    (["--scope", "blocks"], "--scope is block:LAYER (such as block:3), mlp or network; got 'blocks'"),
    (["--scope", "block:x"], "got 'block:x'"),
    (["--scope", "block:-1"], "got 'block:-1'"),
    (["--scope", "block:9"], "layer 9 does not exist; this model has layers 0 to 5"),
    (["--examples", "0"], "--examples must be at least 1, got 0"),
    (["--scope", "block:0", "--tokens", "0"], "--tokens must be at least 1, got 0"),
    (["--max-length", "1"], "--max-length must be at least 2, got 1"),
    (["--readouts", "0"], "--readouts must be at least 1, got 0"),
    (["--readouts", "385"], "--readouts must be at most the model width 384, got 385"),
    (["--tokens", "8"], "--tokens says nothing about --scope network; leave it out"),
    (["--scope", "block:0", "--max-length", "8"], "--max-length says nothing about --scope block:0"),
    (["--seed", "-1"], "--seed must be from 0"),
    (["--memory-limit", "much"], "a memory limit is a positive size such as 8GiB or 500MB; got 'much'"),
    (["--memory-limit", "100B", "--examples", "2"], "the limit is 100 B"),
    (["--scope", "block:0", "--memory-limit", "1MiB"], "ask for 256 rows or fewer"),
    (["--kind", "sign", "--reference"], "--reference needs --kind sgd: neural-tangents has no sign kernel"),
    (["--reference", "--memory-limit", "1GiB"], "ask for --examples 2 or fewer, raise --memory-limit, or leave"),
    (["--reference", "--memory-limit", "1MiB"], "not even one fits"),
    (["--out", "k.png"], "--out must name a file that ends in .npz, got 'k.png'"),
    (["--out", ".npz"], "--out must name a file that ends in .npz"),
    (["--out", "one.txt/k.npz"], "one.txt is not a folder"),
    (["--text", "missing.txt"], "text file missing.txt does not exist"),
    (["--text", "empty.txt"], "text file empty.txt is empty"),
]


@pytest.mark.parametrize(("arguments", "message"), NONSENSE)
def test_nonsense_gets_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("one.txt").write_text("Only this.\n")
    code, out, err = run_kernel(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("ntkfusion: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "one.txt"]


def test_one_sentence_is_enough(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("Only this.\nOnly this.\n")
    assert run_kernel(capsys, "--scope", "block:0", "--text", "one.txt", "--out", "k.npz")[0] == 0
    assert load_kernel_file("k.npz").labels == ("[CLS]", "only", "this", ".", "[SEP]")


def test_a_model_without_tokenizer_is_refused(tmp_path, monkeypatch, capsys, minilm):
    monkeypatch.setattr(
        "ntkfusion.commands.kernel.run.load_model", lambda name, **options: dataclasses.replace(minilm, tokenizer=None)
    )
    for scope in ("block:0", "network"):
        code, _, err = run_kernel(capsys, "--scope", scope, "--out", tmp_path / "k.npz")
        assert code == 2
        assert "has no tokenizer files, so it cannot read text" in err
    assert not list(tmp_path.iterdir())
