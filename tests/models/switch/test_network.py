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

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_model
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.layers.mlp import over_capacity
from ntkfusion.models.model import Model, abstract_params
from ntkfusion.models.switch.config import SwitchConfig
from ntkfusion.models.switch.network import buckets
from tests.helpers.torch_parity import compare

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


def in_double(oracle):
    """The model in float64; its norms and routers compute in float32 whatever the model's dtype is."""
    oracle = oracle.double()
    for module in oracle.modules():
        if isinstance(module, theirs.SwitchTransformersTop1Router):
            module.dtype = torch.float64
        if isinstance(module, theirs.SwitchTransformersLayerNorm):
            module.forward = lambda x, module=module: torch.nn.functional.rms_norm(
                x, x.shape[-1:], module.weight, module.variance_epsilon
            )
    return oracle


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


def test_experts_take_the_first_tokens_of_every_sequence():
    chosen = jnp.array([[0, 1, 0, 0, 1], [1, 1, 1, 2, 1]])
    dropped = over_capacity(chosen, 3, 2)
    np.testing.assert_array_equal(dropped, [[0, 0, 0, 1, 0], [0, 0, 1, 0, 1]])


SMALL = SwitchConfig(
    vocab_size=17,
    hidden_size=8,
    d_kv=3,
    d_ff=12,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    num_experts=2,
    expert_capacity=3,
    encoder_sparse_step=1,
    decoder_sparse_step=1,
    relative_attention_num_buckets=4,
    relative_attention_max_distance=8,
    head="seq2seq-lm",
)
IDS = jnp.array([[0, 0, 5, 9, 2, 1], [4, 3, 2, 2, 8, 1]], jnp.int32)
MASK = jnp.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], jnp.int32)


def with_random_weights(config):
    """A model whose weights compile nothing."""
    rng = np.random.default_rng(4)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.8 * rng.normal(size=leaf.shape), leaf.dtype), abstract_params(config)
    )
    return Model(config, params)


@pytest.fixture(scope="module")
def small():
    """One sparse layer each."""
    return with_random_weights(SMALL)


@pytest.fixture(scope="module")
def plain(small):
    """What it makes of the padded batch."""
    return outputs(small)


def outputs(model, **batch):
    """What a model makes of the padded batch, compiled."""
    batch = {"input_ids": IDS, "attention_mask": MASK, **batch}
    return jax.jit(lambda params: model.apply(params, **batch))(model.params)


def test_a_decoder_reads_the_input_shifted_unless_told(small, plain):
    shifted = {
        "decoder_input_ids": jnp.array([[0, 0, 0, 5, 9, 2], [0, 4, 3, 2, 2, 8]], jnp.int32),
        "decoder_attention_mask": jnp.array([[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]], jnp.int32),
    }
    told = outputs(small, **shifted)
    jax.tree.map(np.testing.assert_array_equal, plain, told)


def test_a_decoder_without_anything_to_read(small):
    def trace(model, **batch):
        return jax.eval_shape(lambda params: model.apply(params, **batch), model.params)

    embeds = jnp.zeros((1, 3, 8))
    with pytest.raises(InputError, match="give decoder_input_ids with inputs_embeds"):
        trace(small, inputs_embeds=embeds)
    assert trace(small, inputs_embeds=embeds, decoder_input_ids=IDS[:1, :2]).logits.shape == (1, 2, 17)
    silent = dataclasses.replace(small, config=dataclasses.replace(SMALL, decoder_start_token_id=None))
    with pytest.raises(InputError, match="neither decoder_start_token_id nor pad_token_id"):
        trace(silent, input_ids=IDS)
    labelled = with_random_weights(dataclasses.replace(SMALL, head=None, num_labels=3))
    with pytest.raises(InputError, match="as many decoder_input_ids"):
        trace(labelled, input_ids=IDS, decoder_input_ids=IDS[:, :2])


@pytest.mark.slow
def test_one_example_at_a_time_and_its_network_kernel(small, plain):
    def f(params, example):
        ids, mask = example
        return small.apply(params, input_ids=ids[None], attention_mask=mask[None]).logits[0, 0, :2]

    examples = (IDS, MASK)
    values, gradients = jax.jit(jax.vmap(lambda *given: (f(*given), jax.jacrev(f)(*given)), in_axes=(None, 0)))(
        small.params, examples
    )
    np.testing.assert_allclose(values, plain.logits[:, 0, :2], atol=1e-5)
    flat = jnp.concatenate([leaf.reshape(2, 2, -1) for leaf in jax.tree.leaves(gradients)], axis=-1)
    expected = jnp.einsum("iap,jbp->ijab", flat, flat)
    found = nf.network_kernel(f, small.params, examples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


def test_dropout_is_asked_for(small, plain):
    run = jax.jit(lambda key: small.apply(small.params, input_ids=IDS, attention_mask=MASK, dropout_key=key).logits)
    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain.logits).max() > 1e-3


def doubled(block):
    """The mixture with every neuron of every expert twice."""
    w1, w2 = (block.parameters()[f"experts/{name}"] for name in ("w1", "w2"))
    return block.replace(**{"experts/w1": jnp.tile(w1, (1, 1, 2)), "experts/w2": jnp.tile(w2, (1, 2, 1))})


@pytest.mark.parametrize("variant", ["v4", pytest.param("v1", marks=pytest.mark.slow)])
def test_experts_with_every_neuron_twice_fuse_exactly(small, variant):
    model = small.replace_mlp_blocks(dict(enumerate(map(doubled, small.mlp_blocks()))))
    compressed, reports = nf.compress(model, nf.MLPFusion(0.5, variant=variant))
    assert [reports[layer].hidden_width for layer in (0, 1)] == [12, 12]
    assert all(isinstance(block, MixtureBlock) for block in compressed.mlp_blocks())
    assert compressed.num_parameters == small.num_parameters < model.num_parameters
    expected, found = outputs(model), outputs(compressed)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, found.dropped_tokens, expected.dropped_tokens)


def test_other_kinds_of_blocks_in_place_of_a_mixture(small, plain):
    compressed, _ = nf.compress(small, nf.SVD(0.5))
    mixed = compressed.replace_mlp_blocks({1: small.mlp_blocks()[1].expert(0)})
    output = outputs(mixed)
    assert [type(block).__name__ for block in mixed.mlp_blocks()] == ["MixtureBlock", "MLPBlock"]
    assert len(output.router_logits) == 1
    np.testing.assert_array_equal(output.router_logits[0], plain.router_logits[0])
    assert np.isfinite(output.logits).all()
