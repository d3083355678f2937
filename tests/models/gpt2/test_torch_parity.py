"""Parity with transformers' PyTorch GPT-2, also of compressed blocks. ``-n 0 -s`` prints what was measured."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_model
from tests.helpers.readout import our_outputs
from tests.helpers.torch_parity import compare
from tests.models.gpt2.test_network import PAD, TINY

pytestmark = pytest.mark.oracle

CLASSES = {
    None: transformers.GPT2Model,
    "causal-lm": transformers.GPT2LMHeadModel,
    "sequence-classification": transformers.GPT2ForSequenceClassification,
    "token-classification": transformers.GPT2ForTokenClassification,
    "question-answering": transformers.GPT2ForQuestionAnswering,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small random GPT-2 and the shape of a batch for it."""

    name: str
    head: str | None = None
    changes: dict = dataclasses.field(default_factory=dict)
    padding: str = "right"
    batch: int = 3
    length: int = 11


CASES = [
    Case("gelu_new, three heads, two layers", changes={"n_layer": 2}),
    Case("classifier, left padding, 12 heads", "sequence-classification", {"n_head": 12, "num_labels": 3}, "left"),
    Case(
        "untied language model, relu, n_inner",
        "causal-lm",
        {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 17},
    ),
]


LEFT = Case("language model, left padding, odd sizes, one head", "causal-lm", {"n_embd": 37, "n_head": 1}, "left")


MORE = [
    Case("classifier, gelu, right padding", "sequence-classification", {"activation_function": "gelu"}),
    Case("classifier, no padding token, batch of one", "sequence-classification", {"pad_token_id": None}, batch=1),
    Case("full length, batch of one", "causal-lm", {"n_layer": 2}, batch=1, length=19),
    Case(
        "scores scaled by layer, full length",
        changes={"n_layer": 3, "scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3},
        length=19,
    ),
    Case("scores not scaled", changes={"scale_attn_weights": False, "n_head": 12}, padding="left"),
    Case("token classifier", "token-classification", {"num_labels": 5}),
    Case("question answering", "question-answering", padding="left"),
]


def with_slow(cases, slow):
    """Cases of every run, and those of a full one."""
    return [*cases, *(pytest.param(case, marks=pytest.mark.slow) for case in slow)]


def small_oracle(head, changes, noise=0.15):
    """A random model whose every parameter matters, LayerNorms and biases included."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**(TINY | changes), attn_implementation="eager")
    oracle = CLASSES[head](config)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    return oracle.eval()


def padded_batch(rng, vocab_size, shape, padding):
    """Token ids without PAD but where there is padding, and the mask; the first row is full."""
    lengths = rng.integers(2, shape[1], size=(shape[0], 1))
    lengths[0] = shape[1]
    places = np.arange(shape[1])[None, :]
    mask = places < lengths if padding == "right" else places >= shape[1] - lengths
    ids = np.where(mask, rng.integers(1, vocab_size, size=shape), PAD)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def small_batch(case):
    return padded_batch(np.random.default_rng(1), TINY["vocab_size"], (case.batch, case.length), case.padding)


@pytest.mark.parametrize("case", with_slow([LEFT], [*CASES, *MORE]), ids=lambda case: case.name)
def test_equals_torch_in_float32(case, tmp_path):
    oracle = small_oracle(case.head, case.changes)
    oracle.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config.head == case.head
    assert model.num_parameters == sum(parameter.numel() for parameter in oracle.parameters())
    found = compare(model, oracle, small_batch(case), gradients=True)
    print(f"\n{case.name}, float32: {found}")
    assert max(found.hidden, found.pooled) <= 2e-5
    assert found.gradient <= 1e-4


@pytest.mark.parametrize("case", with_slow(CASES, [LEFT, *MORE]), ids=lambda case: case.name)
def test_equals_torch_in_float64(case, tmp_path, x64):
    oracle = small_oracle(case.head, case.changes)
    oracle.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float64")
    found = compare(model, oracle.double(), small_batch(case), gradients=True)
    print(f"\n{case.name}, float64: {found}")
    assert model.config.head == case.head
    assert max(found.hidden, found.pooled) <= 1e-9
    assert found.gradient <= 1e-9


def test_other_inputs(tmp_path):
    """Given positions, token types and word embeddings."""
    oracle = small_oracle("causal-lm", {})
    oracle.save_pretrained(tmp_path)
    model, batch, rng = load_model(tmp_path), small_batch(LEFT), np.random.default_rng(2)
    shape = batch["input_ids"].shape
    given = {
        "inputs_embeds": rng.normal(size=(*shape, 24)).astype(np.float32),
        "attention_mask": batch["attention_mask"],
        "position_ids": rng.integers(0, 19, shape),
        "token_type_ids": rng.integers(0, 3, shape),
    }
    assert compare(model, oracle, given, gradients=False).pooled <= 2e-5


def folded_oracle(oracle, changes, blocks):
    """The PyTorch model with other MLP blocks, their constants multiplied into the weights."""
    new = small_oracle("causal-lm", changes | {"n_inner": blocks[0].hidden_width}).double()
    weights = {name: leaf for name, leaf in oracle.double().state_dict().items() if ".mlp." not in name}
    for index, block in enumerate(blocks):
        plain, place = block.fold(), f"transformer.h.{index}.mlp"
        arrays = {"c_fc.weight": plain.w1, "c_fc.bias": plain.b1, "c_proj.weight": plain.w2, "c_proj.bias": plain.b2}
        weights |= {f"{place}.{name}": torch.tensor(np.asarray(array)) for name, array in arrays.items()}
    new.load_state_dict(weights)
    return new


def with_constants(model):
    """Ten of the neurons, with constants on both sides of the activation."""
    block, rng = model.mlp_blocks()[0], np.random.default_rng(4)
    kept = block.replace(w1=block.w1[:, :10], b1=block.b1[:10], w2=block.w2[:10])
    q, r = jnp.asarray(rng.uniform(1, 3, (2, 10)))
    return model.replace_mlp_blocks({0: kept.replace(q=q, r=r)})


def fused(model, variant):
    return nf.compress(model, nf.MLPFusion(keep_ratio=0.25, variant=variant, num_restarts=1))[0]


@pytest.mark.parametrize(
    "compress",
    [
        with_constants,
        pytest.param(lambda model: fused(model, "v1"), marks=pytest.mark.slow),
        pytest.param(lambda model: fused(model, "v2"), marks=pytest.mark.slow),
    ],
    ids=["constants", "fusion v1", "fusion v2"],
)
def test_compressed_equals_torch_with_folded_weights(compress, tmp_path, x64):
    """Outputs, and gradients by the chain rule through constants that are no parameters."""
    changes = {"n_inner": 40}
    oracle = small_oracle("causal-lm", changes)
    oracle.save_pretrained(tmp_path)
    model = compress(load_model(tmp_path, dtype="float64"))
    (block,) = model.mlp_blocks()
    assert block.hidden_width == 10
    folded, batch = folded_oracle(oracle, changes, [block]), small_batch(LEFT)
    weights = np.random.default_rng(3).normal(size=(*batch["input_ids"].shape, TINY["vocab_size"]))
    weights *= batch["attention_mask"][:, :, None]

    def loss(params):
        logits = our_outputs(model, params, batch)["logits"]
        return jnp.sum(logits * weights), logits

    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(model.params)
    theirs = folded(**{name: torch.tensor(values) for name, values in batch.items()}).logits
    real = batch["attention_mask"] > 0
    np.testing.assert_allclose(ours[real], theirs.detach().numpy()[real], rtol=1e-9, atol=1e-9)
    (theirs * torch.tensor(weights)).sum().backward()
    found, torch_mlp = gradients["layer_0"]["mlp"], folded.transformer.h[0].mlp
    r = np.ones(10) if block.r is None else np.asarray(block.r)
    q = np.ones(10) if block.q is None else np.asarray(block.q)
    wanted = {
        "w1": torch_mlp.c_fc.weight.grad.numpy() * r[None, :],
        "b1": torch_mlp.c_fc.bias.grad.numpy() * r,
        "w2": torch_mlp.c_proj.weight.grad.numpy() * q[:, None],
        "b2": torch_mlp.c_proj.bias.grad.numpy(),
    }
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
