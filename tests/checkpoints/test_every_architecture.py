"""Saving and loading models of every architecture and head, compressed ones too."""

from __future__ import annotations

import json

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ntkfusion.checkpoints.formats.statement import function_fields
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.config import WITH_LABELS
from ntkfusion.models.model import random_model
from ntkfusion.models.registry import ARCHITECTURES, transformers_class
from tests.checkpoints.test_fuzz import named
from tests.helpers.saving import IDS, assert_same_tensors, fused

pytestmark = pytest.mark.oracle

_ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 20}
SIZES = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "albert": {"embedding_size": 4, "num_hidden_groups": 2, **_ENCODER},
    "gpt2": {"n_positions": 16, "n_layer": 2, "n_head": 2},
    "switch_transformers": {
        "d_kv": 4,
        "d_ff": 12,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "num_experts": 3,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
    },
}
EVERY = [(name, head) for name, record in ARCHITECTURES.items() for head in (None, *record.config.HEADS)]


def make(name, head, **options):
    cls = ARCHITECTURES[name].config
    labels = 3 if head in WITH_LABELS else None
    return random_model(cls(vocab_size=13, hidden_size=8, head=head, num_labels=labels, **SIZES[name], **options))


def check(model, tmp_path):
    """All formats give the model back, and transformers finds in the folder what it wants, and nothing else."""
    formats = ["ntkfusion"]
    if (model.config.model_type, model.config.head) == ("switch_transformers", "sequence-classification"):
        with pytest.raises(InputError, match="transformers has no Switch Transformer with a head for sequence"):
            save_model(model, tmp_path / "hf")
    else:
        formats += ["hf"]
    if model.config.head in ARCHITECTURES[model.config.model_type].flax_heads:
        formats += ["flax"]
    else:
        with pytest.raises(InputError, match="transformers has no Flax class"):
            save_model(model, tmp_path / "flax", format="flax")
    for kind in formats:
        again = load_model(save_model(model, tmp_path / kind, format=kind))
        assert function_fields(again.config) == function_fields(model.config)
        assert_same_tensors(named(again), named(model))
    if "hf" in formats:
        cls = getattr(transformers, transformers_class(model.config))
        _, info = cls.from_pretrained(tmp_path / "hf", output_loading_info=True)
        assert not any(info.values()), info


@pytest.mark.slow
def test_layers_that_share_their_weights(tmp_path):
    check(make("albert", "masked-lm"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), EVERY)
def test_every_architecture_and_head(tmp_path, name, head):
    check(make(name, head), tmp_path / "tied")
    if head and head.endswith("lm"):
        check(make(name, head, tie_word_embeddings=False), tmp_path / "untied")


def compressed(model):
    """The same with fewer neurons in every block, which have constants."""

    def block(old, index):
        if isinstance(old, MixtureBlock):
            return MixtureBlock.stack(
                old.router, [block(old.expert(e), 10 * e + index) for e in range(old.num_experts)]
            )
        biases = {} if old.b1 is not None else {"b1": None, "b2": None}
        new = fused(5, seed=index).replace(activation=old.activation, **biases)
        return new.replace(w1=0.1 * new.w1, w2=0.1 * new.w2)

    return model.replace_mlp_blocks({i: block(old, i) for i, old in enumerate(model.mlp_blocks())})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "key"), [("gpt2", "causal-lm", "n_inner"), ("switch_transformers", "seq2seq-lm", "d_ff")]
)
def test_compressed_models_in_transformers(tmp_path, name, head, key):
    small = compressed(make(name, head))
    batch = {"input_ids": IDS} if name == "gpt2" else {"input_ids": IDS, "decoder_input_ids": IDS}
    ours = small.apply(small.params, **{k: jnp.asarray(v) for k, v in batch.items()}).logits
    save_model(small, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())[key] == 5
    oracle, info = getattr(transformers, transformers_class(small.config)).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    theirs = oracle.eval()(**{k: torch.tensor(v) for k, v in batch.items()}).logits.detach()
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    save_model(small, tmp_path / "own", format="ntkfusion")
    assert_same_tensors(named(load_model(tmp_path / "own")), named(small))
    if name == "gpt2":
        save_model(small, tmp_path / "flax", format="flax")
        tree = flax.serialization.msgpack_restore((tmp_path / "flax/flax_model.msgpack").read_bytes())
        attention = tree["transformer"]["h"]["0"]["attn"]["c_attn"]
        # outputs × inputs: Flax's Conv1D and PyTorch's disagree
        assert attention["kernel"].shape == (24, 8)
        np.testing.assert_array_equal(attention["kernel"].T, oracle.transformer.h[0].attn.c_attn.weight.detach())
