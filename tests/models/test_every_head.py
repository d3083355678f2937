"""Every architecture with every head is what transformers says: its tensors, what it returns, and its gradients.

Small random models, weights and inputs from a seed; what PyTorch says of them is stored. The wide tier asks
PyTorch again, and compares more shapes and sizes with it (`test_torch_parity.py` of each architecture).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import transformers

from ntkfusion.checkpoints.load import load_model
from ntkfusion.models.registry import ARCHITECTURES
from tests.helpers.oracle import described, draw, read_by, write_checkpoint
from tests.helpers.readout import compare_with_said
from tests.helpers.tiers import wide_unless

ENCODER = {
    "vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 14,
    "max_position_embeddings": 12, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
DECODER = {
    "vocab_size": 23, "n_embd": 12, "n_layer": 1, "n_head": 3, "n_positions": 9, "n_inner": 14,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
SWITCH = {
    "vocab_size": 23, "d_model": 12, "d_kv": 4, "d_ff": 14, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3,
    "num_experts": 3, "expert_capacity": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9, "decoder_start_token_id": 0,
}  # fmt: skip
SIZES = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER | {"pad_token_id": 2},
    "albert": ENCODER | {"embedding_size": 5, "num_hidden_layers": 3, "num_hidden_groups": 2},
    "gpt2": DECODER,
    "switch_transformers": SWITCH,
}
#: XLM-RoBERTa is RoBERTa by another name, and transformers has no Switch Transformer that classifies sequences: the
#: wide tier compares that with T5's classifier.
CASES = [
    (name, head)
    for name, record in ARCHITECTURES.items()
    for head in (None, *record.config.HEADS)
    if name in SIZES
    and (name, head) != ("switch_transformers", "sequence-classification")
    and (name != "xlm-roberta" or head == "masked-lm")
]


@dataclasses.dataclass(frozen=True)
class Asked:
    """An architecture with a head, in transformers."""

    name: str
    head: str | None

    @property
    def cls(self):
        """The class in transformers."""
        record = ARCHITECTURES[self.name]
        return getattr(transformers, record.class_prefix + record.class_endings[self.head])

    @property
    def config(self):
        """Its configuration."""
        labels = {"num_labels": 3} if "classification" in (self.head or "") else {}
        cls = getattr(transformers, f"{ARCHITECTURES[self.name].class_prefix}Config")
        return cls(**SIZES[self.name], **labels, attn_implementation="eager")

    @property
    def batch(self):
        """Padded token ids."""
        rng, pad = np.random.default_rng(1), SIZES[self.name].get("pad_token_id", 0)
        mask = (np.arange(7)[None, :] < np.array([7, 4])[:, None]).astype(np.int64)
        words = (pad + rng.integers(1, 23, size=mask.shape)) % 23
        batch = {"input_ids": np.where(mask, words, pad), "attention_mask": mask}
        if self.name == "switch_transformers":
            batch["decoder_input_ids"] = rng.integers(2, 23, size=(2, 5))
        return batch


def in_default_tier(name, head):
    """RoBERTa and ALBERT have BERT's heads: those that differ in names, and the largest."""
    return name not in ("roberta", "albert") or head in (None, "masked-lm")


@pytest.mark.parametrize(("name", "head"), wide_unless(in_default_tier, CASES))
def test_tensors_outputs_and_gradients(name, head, tmp_path, oracle, x64):
    def says(torch):
        from tests.helpers.torch_parity import torch_says
        from tests.helpers.torch_switch import in_double

        return torch_says(in_double(read_by(asked.cls, tmp_path, attn_implementation="eager")), asked.batch)

    asked = Asked(name, head)
    saved = oracle(lambda torch: described(asked.cls(asked.config)))
    write_checkpoint(tmp_path, saved["config"], draw(saved["shapes"], 7, 0.3))
    model = load_model(tmp_path, dtype="float64")
    assert model.config.head == head
    found = compare_with_said(model, oracle(says), asked.batch)
    print(f"\n{name}, {head}, float64: {found}")
    assert max(found.hidden, found.pooled) <= 1e-9
    assert found.gradient <= 1e-9


FLOAT32 = [("bert", "sequence-classification"), ("gpt2", "causal-lm"), ("switch_transformers", "seq2seq-lm")]


@pytest.mark.wide
@pytest.mark.parametrize(("name", "head"), FLOAT32)
def test_float32(name, head, tmp_path, oracle):
    def says(torch):
        from tests.helpers.torch_parity import torch_says

        return torch_says(read_by(asked.cls, tmp_path, attn_implementation="eager"), asked.batch)

    asked = Asked(name, head)
    saved = oracle(lambda torch: described(asked.cls(asked.config)))
    write_checkpoint(tmp_path, saved["config"], draw(saved["shapes"], 7, 0.3))
    found = compare_with_said(load_model(tmp_path), oracle(says, rounding=1e-4), asked.batch)
    print(f"\n{name}, {head}, float32: {found}")
    assert max(found.hidden, found.pooled) <= 2e-5
    assert found.gradient <= 1e-4
