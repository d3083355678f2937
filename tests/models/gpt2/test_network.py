"""Parity with transformers' PyTorch GPT-2. ``-n 0 -s`` prints what was measured."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_model
from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.gpt2.config import gpt2_hf_config as hf_config
from ntkfusion.models.gpt2.network import GPT2Attention, GPT2Layer
from ntkfusion.models.model import Model, abstract_params
from ntkfusion.models.registry import read_config
from tests.helpers.torch_parity import compare, our_outputs

PAD = 0
TINY = {
    "vocab_size": 61,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 3,
    "n_positions": 19,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": PAD,
}
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


def test_classifier_reads_the_last_token_that_is_none_by_mask_or_id(tmp_path):
    small_oracle("sequence-classification", {}).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = np.array([[5, 6, 7, PAD, PAD], [5, 6, 7, 8, 9], [5, 6, 7, PAD, PAD], [5, 6, 8, PAD, PAD]])
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    logits = jax.jit(model.apply)(model.params, input_ids=ids, attention_mask=mask).logits
    np.testing.assert_allclose(logits[1:3], np.broadcast_to(logits[0], (2, 2)), rtol=1e-4)
    assert np.abs(logits[3] - logits[0]).max() > 1e-2


def fresh(config):
    """A model with random parameters everywhere."""
    rng = np.random.default_rng(6)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype))  # noqa: E731
    return Model(config, jax.tree.map(draw, abstract_params(config)))


def test_dropout_is_explicit():
    config = GPT2Config(vocab_size=9, hidden_size=8, n_layer=1, n_head=2, n_positions=5, head="causal-lm")
    model, ids = fresh(config), np.array([[3, 1, 4, 1]])
    apply, key = jax.jit(model.apply), jax.random.key(0)
    plain = apply(model.params, input_ids=ids).logits
    dropped, again = (apply(model.params, input_ids=ids, dropout_key=key).logits for _ in range(2))
    np.testing.assert_array_equal(dropped, again)
    assert np.abs(dropped - plain).max() > 1e-3


# a real model


def write_nano_sort(source, folder):
    """The weights that minGPT trained to sort six letters, as a Hugging Face folder."""
    stored = np.load(source / "model.npz")
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {name: np.ascontiguousarray(stored[name].T if name.endswith(linear) else stored[name]) for name in stored}
    sizes = json.loads((source / "config.json").read_text())
    config = {name: sizes[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    config |= {"model_type": "gpt2", "n_positions": sizes["block_size"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def nano_sort(data_dir, tmp_path_factory):
    """The real sorting model."""
    return load_model(write_nano_sort(data_dir / "gpt_nano_sort", tmp_path_factory.mktemp("nano")))


def test_nano_sort_reproduces_its_recorded_activations(nano_sort, data_dir):
    recorded = np.load(data_dir / "gpt_nano_sort" / "partials.npz")
    ids = recorded["idx"].astype(np.int32)
    batch = Batch(attention_mask=jnp.ones_like(ids), input_ids=jnp.asarray(ids))
    kept = lambda module, _: isinstance(module, GPT2Layer | GPT2Attention)  # noqa: E731
    output, state = nano_sort._run(nano_sort.params, batch, capture_intermediates=kept, mutable=["intermediates"])
    seen = state["intermediates"]
    block, first = nano_sort.mlp_blocks()[0], seen["layer_0"]
    inputs = nano_sort.block_inputs(batch.input_ids, batch.attention_mask)[0]
    ours = {
        "yProj": first["attention"]["__call__"][0],
        "ln2": inputs,
        "fc": block.preactivation(inputs),
        "gelu": block.hidden(inputs),
        "mlp": block(inputs),
        **{f"block{index}": seen[f"layer_{index}"]["__call__"][0] for index in range(3)},
        "ln_f": output.last_hidden_state,
        "lm_head": output.logits,
    }
    errors = {name: float(np.abs(np.asarray(array) - recorded[name]).max()) for name, array in ours.items()}
    print(f"\nnano sort: {errors}")
    scale = {name: max(1.0, float(np.abs(recorded[name]).max())) for name in errors}
    assert all(error <= 1e-5 * scale[name] for name, error in errors.items()), errors


def test_nano_sort_sorts_everything(nano_sort):
    letters = np.stack(np.meshgrid(*[np.arange(3)] * 6, indexing="ij"), -1).reshape(-1, 6)
    assert letters.shape == (729, 6)
    found = np.asarray(nf.generate(nano_sort, letters, max_new_tokens=6))
    np.testing.assert_array_equal(found[:, :6], letters)
    assert np.all(found[:, 6:] == np.sort(letters, axis=1), axis=1).sum() == 729


# compressed models


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


def test_generating_with_blocks_of_different_widths():
    config = GPT2Config(vocab_size=9, hidden_size=8, n_layer=2, n_head=2, n_positions=5, n_inner=6, head="causal-lm")
    model, ids = fresh(config), np.array([[3, 1, 4, 1]])
    block = model.mlp_blocks()[1]
    half = block.replace(w1=block.w1[:, :3], b1=block.b1[:3], w2=block.w2[:3], q=jnp.full(3, 2.0))
    small = model.replace_mlp_blocks({1: half})
    assert [block.hidden_width for block in small.mlp_blocks()] == [6, 3]
    generated = np.asarray(nf.generate(small, ids, max_new_tokens=2))
    logits = jax.jit(small.apply)(small.params, input_ids=generated[:, :5]).logits
    np.testing.assert_array_equal(generated[0, 4:], np.argmax(logits[0, 3:], axis=-1))


# configurations


def test_defaults_are_hugging_faces():
    theirs, ours = transformers.GPT2Config(), GPT2Config()
    own = {"head", "num_labels", "mlp_layouts", "classifier_dropout"}
    for field in dataclasses.fields(ours):
        if field.name not in own:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_configuration_there_and_back():
    changes = {"n_inner": 5, "activation_function": "relu", "scale_attn_weights": False, "tie_word_embeddings": False}
    config = read_config({"model_type": "gpt2", **TINY, **changes})
    assert (config.n_inner, config.pad_token_id, config.hidden_size) == (5, 0, 24)
    assert read_config(hf_config(config)) == config
    theirs = transformers.GPT2Config(**hf_config(config))
    assert (theirs.hidden_size, theirs.n_inner, theirs.tie_word_embeddings) == (24, 5, False)
    assert hf_config(dataclasses.replace(config, num_labels=4))["num_labels"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention is not supported"),
        ({"n_embd": 25}, "n_embd 25 is not a multiple of n_head 3"),
        ({"n_embd": 0}, "n_embd must be a whole number"),
        ({"n_inner": -1}, "n_inner must be a whole number"),
        ({"pad_token_id": "0"}, "pad_token_id must be a token id or null"),
        ({"activation_function": "swiglu"}, "unknown activation 'swiglu'"),
        ({"resid_pdrop": "no"}, "resid_pdrop must be a small non-negative number"),
    ],
)
def test_configurations_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        read_config({"model_type": "gpt2", **TINY, **changes})


@pytest.mark.parametrize("name", ["vocab_size", "n_embd", "n_layer", "n_head"])
def test_missing_key(name):
    with pytest.raises(InputError, match=f"missing {name}"):
        read_config({"model_type": "gpt2", **{key: value for key, value in TINY.items() if key != name}})


def test_inputs_that_are_too_long():
    model = Model(GPT2Config(n_positions=5), {})
    with pytest.raises(InputError, match="6 tokens long; this model has 5 positions"):
        model.apply(model.params, input_ids=np.zeros((1, 6), np.int32))
