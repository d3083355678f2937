"""Hidden states behind every layer, against transformers' `output_hidden_states` and our own other ways to them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from ntkfusion.checkpoints.load import load_model
from ntkfusion.errors import InputError
from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.switch.config import SwitchConfig
from tests.helpers import small_encoders
from tests.helpers.oracle import described, draw, read_by, write_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = {"vocab_size": 31, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
SWITCH = SwitchConfig(
    vocab_size=31, hidden_size=8, d_kv=4, d_ff=12, num_heads=2, num_experts=2,
    num_encoder_layers=2, num_decoder_layers=2, encoder_sparse_step=2, decoder_sparse_step=2,
)  # fmt: skip


def torch_states(torch, model, batch):
    """Behind every layer; the embeddings left out."""
    with torch.no_grad():
        output = model(**{name: torch.tensor(values) for name, values in batch.items()}, output_hidden_states=True)
    return [state.numpy() for state in output.hidden_states[1:]]


def our_states(model, batch):
    arrays = {name: jnp.asarray(values, jnp.int32) for name, values in batch.items()}
    return [np.asarray(state) for state in jax.jit(lambda params: model.hidden_states(params, **arrays))(model.params)]


def differences(ours, theirs, mask):
    assert len(ours) == len(theirs)
    return [np.abs((a - b) * mask[:, :, None]).max() for a, b in zip(ours, theirs, strict=True)]


def test_bert_has_those_of_transformers(tmp_path, oracle):
    case = small_encoders.Case("three layers, left padding", changes={"num_hidden_layers": 3}, padding="left")
    config = transformers.BertConfig(**case.sizes)
    saved = oracle(lambda torch: described(transformers.BertModel(config)))
    write_checkpoint(tmp_path, saved["config"], draw(saved["shapes"]))
    batch = small_encoders.small_batch(case, config)
    found = our_states(load_model(tmp_path), batch)
    expected = oracle(lambda torch: torch_states(torch, read_by(transformers.BertModel, tmp_path), batch))
    assert len(found) == 3
    assert max(differences(found, expected, batch["attention_mask"])) < 2e-5


def test_gpt2_has_those_of_transformers_but_for_the_norm_behind_the_last(tmp_path, oracle):
    sizes = {"vocab_size": 31, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 11}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    saved = oracle(lambda torch: described(transformers.GPT2LMHeadModel(config)))
    tensors = draw(saved["shapes"])
    write_checkpoint(tmp_path, saved["config"], tensors)
    mask = (np.arange(11)[None, :] < np.array([[11], [4], [7]])).astype(np.int64)
    batch = {"input_ids": np.random.default_rng(1).integers(1, 31, size=(3, 11)), "attention_mask": mask}
    found = our_states(load_model(tmp_path), batch)
    expected = oracle(lambda torch: torch_states(torch, read_by(transformers.GPT2LMHeadModel, tmp_path), batch))
    assert differences(found, expected, batch["attention_mask"])[-1] > 0.1
    last = found[-1] - found[-1].mean(-1, keepdims=True)
    last /= np.sqrt(np.mean(last**2, axis=-1, keepdims=True) + config.layer_norm_epsilon)
    scale, bias = (tensors[f"transformer.ln_f.{name}"][None, None] for name in ("weight", "bias"))
    found[-1] = last * scale + bias
    assert max(differences(found, expected, batch["attention_mask"])) < 2e-5


@pytest.mark.parametrize(
    "config",
    [AlbertConfig(**SMALL, embedding_size=8, num_hidden_layers=3, num_hidden_groups=1), SWITCH],
    ids=["ALBERT: one layer three times", "Switch: encoder and decoder, mixtures"],
)
def test_every_layer_in_turn(config):
    """The last ones are what the network returns, a layer's own arithmetic leads from one to the next."""
    model = small_encoders.random_weights(config, 0.3)
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 31, size=(2, 5)), jnp.int32)

    @jax.jit
    def both(params):
        return model.hidden_states(params, input_ids=ids), model.apply(params, input_ids=ids)

    states, output = both(model.params)
    assert [state.shape for state in states] == [(2, 5, 8)] * config.num_layers
    if isinstance(config, AlbertConfig):
        np.testing.assert_array_equal(states[-1], output.last_hidden_state)
        shorter = dataclasses.replace(model, config=dataclasses.replace(config, num_hidden_layers=2))
        expected = jax.jit(lambda params: shorter.apply(params, input_ids=ids).last_hidden_state)(model.params)
        np.testing.assert_allclose(states[1], expected, atol=1e-5)
        return
    for state, side, last in ((states[1], "encoder", output.encoder_last_hidden_state),
                              (states[3], "decoder", output.last_hidden_state)):  # fmt: skip
        scale = model.params[side]["norm"]["scale"]
        normed = state / jnp.sqrt(jnp.mean(state**2, axis=-1, keepdims=True) + config.layer_norm_epsilon)
        np.testing.assert_allclose(normed * scale[None, None], last, rtol=1e-5, atol=1e-6)


def test_gradients_flow_and_inputs_are_checked():
    model = small_encoders.random_weights(BertConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=6), 0.3)
    ids = jnp.ones((1, 4), jnp.int32)

    @jax.jit
    @jax.grad
    def gradient_of(params):
        return jnp.sum(model.hidden_states(params, input_ids=ids)[0][..., 0])

    gradient = gradient_of(model.params)
    assert jnp.any(gradient["layer_0"]["mlp"]["w1"] != 0)
    assert not jnp.any(gradient["layer_1"]["mlp"]["w1"])
    with pytest.raises(InputError, match="6 positions"):
        model.hidden_states(model.params, input_ids=jnp.ones((1, 7), jnp.int32))
