"""`ntkfusion compare` and `ntkfusion kernel` on a small random Switch Transformer, as a folder with a tokenizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.compare.run import plan as plan_comparison
from ntkfusion.commands.main import main
from ntkfusion.reporting.kernel_file import load_kernel_file
from ntkfusion.reporting.results import read_comparison
from tests.helpers.blocks import relative
from tests.helpers.switch_folder import FEW, SENTENCES, save_switch


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm):
    """The model's folder: MiniLM's tokenizer, random weights."""
    return save_switch(tmp_path_factory.mktemp("models") / "switch", minilm.tokenizer)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of sentences."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(SENTENCES))
    return file


@pytest.fixture(scope="module")
def report(folder, text, tmp_path_factory):
    """What `compare` writes."""
    out = tmp_path_factory.mktemp("report") / "out"
    options = ["--methods", "mlp-fusion", "--width", "0.25", "--text", str(text), *FEW]
    main(["compare", str(folder), *options, "--out", str(out)])
    return out


@pytest.mark.wide
def test_experts_are_compared_one_by_one(report, folder, text):
    model, rows = nf.load_model(folder), read_comparison(report / "results.json").rows
    assert [(row.layer, row.width) for row in rows] == [(layer, 0.25) for layer in range(3)]
    blocks, small = model.mlp_blocks(), nf.compress(model, nf.MLPFusion(0.25, num_restarts=2))[0].mlp_blocks()
    held_out = nf.collect_block_inputs(model, plan_comparison(Compare(text=text)).split.held_out, max_tokens=40, seed=0)
    for row in rows:
        x, block = held_out.inputs[row.layer], blocks[row.layer]
        if row.layer == 0:
            assert row.experts is None
            continue
        chosen = np.asarray(block.route(x)[0])
        assert [expert.tokens for expert in row.experts] == np.bincount(chosen, minlength=3).tolist()
        most = int(np.bincount(chosen).argmax())
        own = x[np.flatnonzero(chosen == most)]
        new, old = (np.asarray(nf.block_kernel(one.expert(most), own)) for one in (small[row.layer], block))
        expected = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert row.experts[most].sgd_kernel_error == pytest.approx(expected, rel=1e-3)


@pytest.mark.wide
def test_routing_is_that_of_the_whole_compressed_network(report, folder, text):
    comparison = read_comparison(report / "results.json")
    (change,) = comparison.routing
    assert (change.method, change.width, change.pairs) == ("mlp-fusion", 0.25, 80)
    assert 0 < change.agreement < 1
    assert 0 < change.flipped_mass < 1
    model = nf.load_model(folder)
    small, _ = nf.compress(model, nf.MLPFusion(0.25, num_restarts=2))
    blocks, sentences = model.mlp_blocks(), plan_comparison(Compare(text=text)).split.held_out
    before, after = (nf.collect_block_inputs(one, sentences, max_tokens=40, seed=0).inputs for one in (model, small))
    same = {
        str(layer): np.argmax(before[layer] @ blocks[layer].router, axis=1)
        == np.argmax(after[layer] @ blocks[layer].router, axis=1)
        for layer in (1, 2)
    }
    assert change.layers == {layer: pytest.approx(kept.mean()) for layer, kept in same.items()}
    assert change.agreement == pytest.approx(np.mean([*same.values()]))


@pytest.mark.wide
def test_experts_are_in_the_report(report):
    table, page = (report / "table.md").read_text(), (report / "index.html").read_text()
    assert "## Experts" in table
    assert "| method | same expert | flipped mass | output error, median expert |" in table
    assert "<h2>The experts</h2>" in page
    assert page.count("<caption>Width 1/4</caption>") == 2


@pytest.mark.wide
def test_kernel_of_a_mixture(folder, text, tmp_path):
    out = tmp_path / "k.npz"
    main(["kernel", str(folder), "--scope", "block:2", "--tokens", "9", "--text", str(text), "--out", str(out)])
    file = load_kernel_file(out)
    assert list(file.groups) == ["router", "experts/w1", "experts/w2"]
    block, x = nf.load_model(folder).mlp_blocks()[2], jnp.asarray(file.inputs["block_inputs"])
    assert relative(file.kernel, nf.block_kernel(block, x)) <= 1e-5


@pytest.mark.slow
def test_kernel_of_the_network(folder, tmp_path):
    out = tmp_path / "k.npz"
    main(["kernel", str(folder), "--examples", "3", "--max-length", "6", "--out", str(out)])
    file = load_kernel_file(out)
    model = nf.load_model(folder)
    assert list(file.groups) == [
        "embeddings",
        "encoder/layer_0",
        "encoder/layer_1",
        "decoder/layer_0",
        "encoder",
        "decoder",
    ]

    def f(params, ids, mask):
        out = model.apply(params, input_ids=ids[None], attention_mask=mask[None])
        return out.last_hidden_state[0, 0] @ file.inputs["readout_directions"]

    arrays = (jnp.asarray(file.inputs[name]) for name in ("input_ids", "attention_mask"))
    jacobian = jax.jit(jax.vmap(jax.jacrev(f), in_axes=(None, 0, 0)))(model.params, *arrays)
    # the embeddings alone would be gigabytes of zeros: group by group
    for name in ("encoder/layer_1", "decoder/layer_0"):
        side, layer = name.split("/")
        part = jacobian[side][layer]
        flat = jnp.concatenate([leaf.reshape(3, 2, -1) for leaf in jax.tree.leaves(part)], axis=-1)
        assert relative(file.groups[name], jnp.einsum("iap,jbp->ijab", flat, flat)) <= 1e-4


@pytest.mark.slow
def test_kernel_of_all_blocks(folder, tmp_path):
    out = tmp_path / "k.npz"
    main(["kernel", str(folder), "--scope", "mlp", "--examples", "2", "--max-length", "5", "--out", str(out)])
    file = load_kernel_file(out)
    assert list(file.groups) == ["encoder/layer_0", "encoder/layer_1", "decoder/layer_0"]
    np.testing.assert_array_equal(sum(file.groups.values()), file.kernel)
