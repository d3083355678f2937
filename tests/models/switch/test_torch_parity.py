"""Parity with transformers' PyTorch Switch Transformer; routers and dropped tokens included."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.switch_transformers import modeling_switch_transformers as theirs
from transformers.models.t5.modeling_t5 import T5ClassificationHead

from ntkfusion.checkpoints.load import load_model
from ntkfusion.models.switch.network import buckets
from tests.helpers.torch_parity import compare
from tests.helpers.torch_switch import in_double

pytestmark = pytest.mark.oracle

TINY = {
    "vocab_size": 41,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 18,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "num_experts": 3,
    "expert_capacity": 64,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "decoder_start_token_id": 0,
}


ALL_SPARSE = {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}


class SwitchTransformersForSequenceClassification(transformers.SwitchTransformersModel):
    """What transformers does not have: T5's classifier on a Switch Transformer."""

    def __init__(self, config):
        super().__init__(config)
        config.classifier_dropout = 0.0
        self.classification_head = T5ClassificationHead(config)

    def forward(self, **batch):
        """The state at the last EOS token, classified."""
        output = super().forward(**batch)
        at_eos = output.last_hidden_state[batch["input_ids"] == self.config.eos_token_id]
        output["logits"] = self.classification_head(
            at_eos.view(len(batch["input_ids"]), -1, self.config.d_model)[:, -1]
        )
        return output


@dataclasses.dataclass(frozen=True)
class Case:
    """A small random Switch Transformer and the shape of a batch for it."""

    name: str
    changes: dict = dataclasses.field(default_factory=dict)
    kind: type = transformers.SwitchTransformersForConditionalGeneration
    batch: int = 3
    lengths: tuple[int, int] = (9, 6)
    padding: str = "right"


CASES = [
    Case("language model, second layers sparse"),
    Case("few places per expert, all sparse, left padding", {**ALL_SPARSE, "expert_capacity": 1}, padding="left"),
    Case(
        "bare, twelve heads, gelu, deeper encoder",
        {**ALL_SPARSE, "num_heads": 12, "dense_act_fn": "gelu", "num_layers": 3, "expert_capacity": 2},
        transformers.SwitchTransformersModel,
        lengths=(7, 10),
    ),
    Case(
        "one head, all dense, untied, odd sizes",
        {
            "num_heads": 1, "d_model": 13, "d_ff": 7, "encoder_sparse_step": 0, "decoder_sparse_step": 0,
            "tie_word_embeddings": False,
        },
    ),
    Case("batch of one, far beyond the largest distance", {"layer_norm_epsilon": 1e-3}, batch=1, lengths=(45, 33)),
    Case("one layer each, one expert", {"num_layers": 1, "num_decoder_layers": 1, "num_experts": 1}),
    Case(
        "classifier",
        {"num_labels": 4, "expert_capacity": 2},
        SwitchTransformersForSequenceClassification,
        lengths=(9, 9),
    ),
]  # fmt: skip


#: The cases that are checked every time; the others have the mark "slow".
ALWAYS = {("float64", 1), ("float64", 6)}


def small_oracle(case, dtype="float32"):
    """A random model whose every parameter matters, in eval mode."""
    torch.manual_seed(0)
    oracle = case.kind(transformers.SwitchTransformersConfig(**(TINY | case.changes), attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            # moderate scores and clear choices of experts: rounding must not decide
            parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape) * (parameter.abs().mean() + 0.5))
            parameter.mul_(0.6 if "Attention" in name else 1)
    return in_double(oracle.eval()) if dtype == "float64" else oracle.eval()


def small_batch(case):
    """Token ids with an EOS at the end, and masks with padding on one side."""
    rng = np.random.default_rng(1)
    batch = {}
    for prefix, length in zip(("", "decoder_"), case.lengths, strict=True):
        lengths = rng.integers(2, length, size=(case.batch, 1))
        lengths[0] = length
        mask = (np.arange(length)[None, :] < lengths).astype(np.int64)
        ids = np.where(mask, rng.integers(2, TINY["vocab_size"], size=mask.shape), 0)
        ids[np.arange(case.batch), lengths[:, 0] - 1] = 1
        flip = slice(None, None, -1) if case.padding == "left" else slice(None)
        batch |= {f"{prefix}input_ids": ids[:, flip].copy(), f"{prefix}attention_mask": mask[:, flip].copy()}
    return batch


def oracle_routing(oracle, batch):
    """Logits and dropped tokens of every router, encoder first."""
    seen = []

    def note(_, __, outputs):
        dispatched, _, logits = outputs
        seen.append((logits.detach().numpy(), dispatched.sum(-1).numpy() == 0))

    routers = [m for m in oracle.modules() if isinstance(m, theirs.SwitchTransformersTop1Router)]
    hooks = [router.register_forward_hook(note) for router in routers]
    with torch.no_grad():
        oracle(**{name: torch.tensor(values) for name, values in batch.items()})
    for hook in hooks:
        hook.remove()
    return seen


def our_output(model, batch):
    arrays = {name: jnp.asarray(values.astype(np.int32)) for name, values in batch.items()}
    return jax.jit(lambda params: model.apply(params, **arrays))(model.params)


def check(case, folder, dtype, tolerance, gradient):
    small_oracle(case).save_pretrained(folder)
    oracle, batch = small_oracle(case, dtype), small_batch(case)
    model = load_model(folder, dtype=dtype)
    found = compare(model, oracle, batch, gradients=True)
    print(f"\n{case.name}, {dtype}: {found}")
    assert max(found.hidden, found.pooled) <= tolerance
    assert found.gradient <= gradient
    ours, expected = our_output(model, batch), oracle_routing(oracle, batch)
    assert len(ours.router_logits) == len(ours.dropped_tokens) == len(expected)
    for logits, dropped, (their_logits, their_dropped) in zip(
        ours.router_logits, ours.dropped_tokens, expected, strict=True
    ):
        probabilities = torch.softmax(torch.tensor(their_logits), -1).numpy()
        assert np.abs(np.asarray(jax.nn.softmax(logits)) - probabilities).max() <= tolerance
        np.testing.assert_array_equal(np.asarray(logits).argmax(-1), their_logits.argmax(-1))
        np.testing.assert_array_equal(dropped, their_dropped)
    return sum(dropped.sum() for _, dropped in expected), len(expected)


def marked(dtype):
    """All cases, those that are not in `ALWAYS` as slow ones."""
    marks = [() if (dtype, index) in ALWAYS else pytest.mark.slow for index in range(len(CASES))]
    return [pytest.param(case, marks=mark, id=case.name) for case, mark in zip(CASES, marks, strict=True)]


@pytest.mark.parametrize("case", marked("float64"))
def test_small_switch_equals_torch_in_float64(case, tmp_path, x64):
    dropped, sparse = check(case, tmp_path, "float64", 1e-9, 1e-9)
    assert (dropped > 0) == (case.changes.get("expert_capacity", 64) <= 2)
    assert (sparse == 0) == ("all dense" in case.name)


@pytest.mark.parametrize("case", marked("float32"))
def test_small_switch_equals_torch_in_float32(case, tmp_path):
    check(case, tmp_path, "float32", 2e-5, 1e-4)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 9), (13, 50), (4, 3)])
@pytest.mark.parametrize("both_directions", [True, False])
def test_buckets_are_those_of_torch(num_buckets, max_distance, both_directions):
    ours = buckets(700, 650, both_directions=both_directions, num_buckets=num_buckets, max_distance=max_distance)
    ahead = torch.arange(650)[None, :] - torch.arange(700)[:, None]
    options = {"bidirectional": both_directions, "num_buckets": num_buckets, "max_distance": max_distance}
    expected = theirs.SwitchTransformersAttention._relative_position_bucket(ahead, **options)
    np.testing.assert_array_equal(ours, expected)
    assert ours.max() == num_buckets - 1 - (num_buckets % 2 if both_directions else 0)
