"""The README's support matrix: every cell is a check that ran, and the table is what the checks make of it.

The wide tier checks one head of three architectures, and that the README has a row for it; ``pytest -m slow`` checks
every head, and that the README's table is the one it makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_with_audit
from ntkfusion.kernels.distance.kernel_distance import relative_error
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel
from ntkfusion.models.registry import transformers_class
from tests.helpers.readout import our_outputs
from tests.helpers.torch_parity import compare

pytestmark = pytest.mark.oracle

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ENCODER = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
ENCODER |= {"vocab_size": 31, "max_position_embeddings": 24, "pad_token_id": 0}
DECODER = {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 24, "vocab_size": 31}
DECODER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SWITCH = {"d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3}
SWITCH |= {"num_experts": 2, "vocab_size": 31, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row: the classes of transformers that are one architecture, and a small configuration of them."""

    name: str
    start: str
    sizes: dict
    heads: tuple[str, ...]

    def oracle(self, head):
        """A random PyTorch model whose every parameter matters."""
        torch.manual_seed(0)
        labels = 2 if head == "ForQuestionAnswering" else 3  # a start and an end
        config = getattr(transformers, f"{self.start}Config")(**self.sizes, num_labels=labels)
        oracle = getattr(transformers, f"{self.start}{head}")(config)
        with torch.no_grad():
            for parameter in oracle.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape))
        return oracle.eval()


ARCHITECTURES = [
    Architecture("BERT", "Bert", ENCODER, (*HEADS, "ForMaskedLM")),
    Architecture("RoBERTa", "Roberta", ENCODER, (*HEADS, "ForMaskedLM")),
    Architecture("ALBERT", "Albert", {**ENCODER, "embedding_size": 7}, (*HEADS, "ForMaskedLM")),
    Architecture("GPT-2", "GPT2", DECODER, (*HEADS, "LMHeadModel")),
    Architecture("Switch Transformer", "SwitchTransformers", SWITCH, ("Model", "ForConditionalGeneration")),
]


class Case:
    """One architecture with one head, on disk and loaded."""

    def __init__(self, architecture, head, path):
        self.path, self.oracle = path, architecture.oracle(head)
        self.oracle.save_pretrained(path / "theirs")
        self.model, self.audit = load_with_audit(path / "theirs", tokenizer=False)
        self.seq2seq = architecture.start == "SwitchTransformers"
        rng = np.random.default_rng(1)
        mask = (np.arange(9)[None, :] < np.array([9, 6])[:, None]).astype(np.int64)
        self.batch = {"input_ids": rng.integers(3, 31, size=(2, 9)) * mask, "attention_mask": mask}
        if self.seq2seq:
            self.batch["decoder_input_ids"] = rng.integers(3, 31, size=(2, 5))
        self.fused, _ = nf.compress(self.model, nf.MLPFusion(keep_ratio=0.5, num_restarts=1))
        self.differences = compare(self.model, self.oracle, self.batch, gradients=True)

    def load(self):
        """Every number of the file is a parameter, or the same as one."""
        assert self.audit.num_parameters == sum(parameter.numel() for parameter in self.oracle.parameters())
        assert transformers_class(self.model.config) == type(self.oracle).__name__

    def forward(self):
        """Hidden states and logits equal PyTorch's."""
        assert max(self.differences.hidden, self.differences.pooled) <= 2e-5

    def gradients(self):
        """So does the gradient of every parameter."""
        assert self.differences.gradient <= 1e-4

    def compress(self):
        """MLP Fusion halves every block, and the network still runs."""
        widths = [(a.hidden_width, b.hidden_width) for a, b in self.blocks()]
        assert all(before == 2 * after for before, after in widths)
        assert all(np.isfinite(part).all() for part in our_outputs(self.fused, self.fused.params, self.batch).values())

    def kernel(self):
        """The first block's kernels equal the dense Jacobian's, original and compressed."""
        x = jnp.asarray(np.random.default_rng(2).normal(size=(4, self.model.config.hidden_size)), jnp.float32)
        for block in next(iter(self.blocks())):
            for kind in ("sgd", "sign"):
                expected = dense_kernel(*block_function(block), x, kind=kind)
                assert relative_error(nf.block_kernel(block, x, kind=kind), expected) < 1e-4

    def export(self):
        """Transformers loads the compressed model with nothing missing or unexpected, and computes what we do."""
        nf.save_model(self.fused, self.path / "fused")
        theirs, info = type(self.oracle).from_pretrained(self.path / "fused", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        found = compare(self.fused, theirs.eval(), self.batch, gradients=False)
        assert max(found.hidden, found.pooled) <= 1e-5

    def reload(self):
        """Our own format gives the same model back, constants included."""
        nf.save_model(self.fused, self.path / "own", format="ntkfusion")
        again = nf.load_model(self.path / "own")
        assert again.config == self.fused.config
        ours, reloaded = (our_outputs(model, model.params, self.batch) for model in (self.fused, again))
        for name, part in ours.items():
            np.testing.assert_array_equal(part, reloaded[name])

    def blocks(self):
        """Pairs of original and compressed blocks."""
        return zip(self.model.mlp_blocks(), self.fused.mlp_blocks(), strict=True)


CHECKS: dict[str, Callable[[Case], None]] = {
    "load": Case.load,
    "forward": Case.forward,
    "gradients": Case.gradients,
    "compress": Case.compress,
    "kernel": Case.kernel,
    "export": Case.export,
    "reload": Case.reload,
}


def row(architecture, passed):
    """A line of the table; `passed` has the number of heads that passed each check."""
    heads = len(architecture.heads)
    cells = ["✓" if count == heads else f"{count} of {heads} heads" for count in passed.values()]
    names = ", ".join(head.removeprefix("For") for head in architecture.heads if head != "Model")
    return f"| {architecture.name} | {names} | {' | '.join(cells)} |"


def failures(case):
    """Check → what went wrong; empty if all is well."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(case)
        except (AssertionError, nf.NTKFusionError) as error:
            found[name] = error
    return found


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, marks=[pytest.mark.slow] * (each.name in ("GPT-2", "ALBERT")), id=each.name)
        for each in ARCHITECTURES
    ],
)
def test_every_check_passes_for_one_head(architecture, tmp_path):
    assert failures(Case(architecture, architecture.heads[-1], tmp_path)) == {}
    assert f"| {architecture.name} |" in README


@pytest.mark.slow
def test_readme_has_the_table_that_the_checks_make(tmp_path):
    lines = [f"| architecture | heads beside none | {' | '.join(CHECKS)} |", f"| --- | --- |{' :---: |' * len(CHECKS)}"]
    for architecture in ARCHITECTURES:
        cases = [
            failures(Case(architecture, head, tmp_path / architecture.start / head)) for head in architecture.heads
        ]
        lines.append(row(architecture, {name: sum(name not in case for case in cases) for name in CHECKS}))
    table = "\n".join(lines)
    print(f"\n{table}")
    assert table in README
