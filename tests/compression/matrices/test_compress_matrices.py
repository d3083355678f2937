"""Codecs on chosen matrices of a network: attention, embeddings, MLP blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.compression import Autoencoder, AutoencoderTraining, Kronecker, LowRank, compress_matrices
from ntkfusion.compression.matrices.codecs import Matrix
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.bert.names import BERT, ENCODER_MATRICES
from ntkfusion.models.gpt2.names import GPT2, GPT2_MATRICES
from ntkfusion.models.name_table import LAYER
from ntkfusion.models.switch.config import SwitchConfig

TINY = nf.BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3,
    max_position_embeddings=8,
)  # fmt: skip
IDS = jnp.array([[1, 5, 9, 2], [3, 3, 30, 7]])
QUICK = AutoencoderTraining(epochs=2, batch=16)


@pytest.fixture(scope="module")
def model():
    return nf.random_model(TINY)


def at(params, path):
    for part in path.split("/"):
        params = params[part]
    return params


def logits(model):
    return np.asarray(model.apply(model.params, input_ids=IDS).logits)


def test_the_table_names_places_that_checkpoints_fill():
    places = {rule.path.replace(LAYER, "{layer}") for rule in BERT.base}
    assert set(ENCODER_MATRICES.values()) <= places


@pytest.mark.wide
def test_every_kind_of_gpt2_is_decoded_in_place():
    places = {rule.path.replace(LAYER, "{layer}") for rule in GPT2.base}
    assert set(GPT2_MATRICES.values()) <= places
    model = nf.random_model(nf.models.GPT2Config(vocab_size=40, hidden_size=16, n_layer=2, n_head=2, n_positions=8))
    small, store = compress_matrices(model, LowRank(0.5), kinds=GPT2_MATRICES, layers=[1])
    assert [report.kind for report in store.reports.values()] == list(GPT2_MATRICES)
    assert list(GPT2_MATRICES) == ["embeddings", "qkv", "attention_output", "intermediate", "output"]
    for path, dense in store.decode().items():
        np.testing.assert_array_equal(at(small.params, path), dense)
        assert dense.shape == at(model.params, path).shape
    assert small.params["layer_0"] is model.params["layer_0"]
    assert small.params["layer_1"]["attention_norm"] is model.params["layer_1"]["attention_norm"]
    out = small.apply(small.params, input_ids=IDS)
    assert np.isfinite(np.asarray(out.last_hidden_state)).all()


@pytest.mark.wide
def test_other_architectures_say_which_kinds_they_have():
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    albert = nf.random_model(
        nf.models.AlbertConfig(**sizes, embedding_size=8, intermediate_size=24, max_position_embeddings=8)
    )
    with pytest.raises(InputError, match=r"matrices of ALBERT, each once, out of embeddings; got intermediate, output"):
        compress_matrices(albert, LowRank(0.5))
    sizes = {"vocab_size": 40, "hidden_size": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_experts": 2}
    switch = nf.random_model(SwitchConfig(**sizes, num_encoder_layers=2, num_decoder_layers=2))
    with pytest.raises(InputError, match=r"the matrices of .*Switch.* cannot be chosen by kind"):
        compress_matrices(switch, LowRank(0.5))


def test_chosen_matrices_are_decoded_in_place_and_all_else_is_shared(model):
    kinds = ("query", "attention_output", "output", "embeddings")
    small, store = compress_matrices(model, LowRank(0.5), kinds=kinds, layers=[1])
    paths = [ENCODER_MATRICES[kind].format(layer=1) for kind in kinds]
    assert list(store.codes) == list(store.reports) == paths
    for path, dense in store.decode().items():
        np.testing.assert_array_equal(at(small.params, path), dense)
        assert dense.shape == at(model.params, path).shape
    assert small.params["layer_0"] is model.params["layer_0"]
    assert small.params["layer_1"]["attention"]["key"] is model.params["layer_1"]["attention"]["key"]
    assert small.config == model.config
    np.testing.assert_array_equal(at(small.params, "layer_1/mlp/b2"), at(model.params, "layer_1/mlp/b2"))


def test_reports_say_what_is_stored_and_how_close_it_is(model):
    _, store = compress_matrices(model, LowRank(0.5), kinds=["value"], layers=[0])
    ((path, report),) = store.reports.items()
    original, decoded = np.asarray(at(model.params, path)), np.asarray(store.decode()[path])
    assert (report.kind, report.parameters, report.original_parameters) == ("value", 4 * 32, 256)
    assert report.details["rank"] == 4
    assert report.relative_error == pytest.approx(
        np.linalg.norm(decoded - original) / np.linalg.norm(original), rel=1e-5
    )
    s = np.linalg.svd(original, compute_uv=False)
    assert report.relative_error == pytest.approx(np.sqrt((s[4:] ** 2).sum() / (s**2).sum()), rel=1e-4)
    # rows are output neurons: columns here
    cosines = (decoded * original).sum(0) / np.linalg.norm(decoded, axis=0) / np.linalg.norm(original, axis=0)
    assert report.cosine == pytest.approx(cosines.mean(), rel=1e-4)


@pytest.mark.wide
def test_an_autoencoder_shares_a_decoder_among_the_layers(model):
    codec = Autoencoder(ratio=1.8, training=QUICK)
    heard = []
    small, store = compress_matrices(
        model, codec, kinds=["intermediate", "embeddings"], progress=lambda what, fraction: heard.append(what)
    )
    first, second = (store.codes[f"layer_{layer}/mlp/w1"] for layer in (0, 1))
    assert first.decoder[0].kernel is second.decoder[0].kernel
    arrays = {id(leaf): leaf.size for leaf in jax.tree.leaves(dict(store.codes))}
    assert store.num_parameters == sum(arrays.values()) == sum(r.parameters for r in store.reports.values())
    for path, report in store.reports.items():
        assert report.parameters <= report.original_parameters / 1.8
        axis = 1 if "embedding" in path else 0
        norms = [np.linalg.norm(np.asarray(at(tree.params, path)), axis=axis) for tree in (small, model)]
        np.testing.assert_allclose(*norms, rtol=1e-5)
    assert set(heard) == {"autoencoder of intermediate", "autoencoder of embeddings"}


def test_row_weights_come_from_squared_gradients(model):
    """Rows that the task does not feel are left to themselves."""
    matters = jnp.where(jnp.arange(16) < 3, 1.0, 0.0)
    squared = {"layer_0": {"attention": {"key": {"kernel": jnp.tile(matters, (16, 1))}}}}
    codec = Autoencoder(
        0.4,
        linear=True,
        importance="fisher",
        training=AutoencoderTraining(epochs=150, batch=16, rate=0.03),
    )
    _, store = compress_matrices(model, codec, kinds=["key"], layers=[0], squared_gradients=squared)
    (path,) = store.codes
    original, decoded = np.asarray(at(model.params, path)), np.asarray(store.decode()[path])
    errors = np.linalg.norm(decoded - original, axis=0) / np.linalg.norm(original, axis=0)
    assert errors[:3].max() < 0.5 * errors[3:].mean()


@pytest.mark.slow
def test_logits_come_closer_with_the_budget(model):
    """The function, before and after."""
    before = logits(model)

    def gap(codec, kinds):
        small, _ = compress_matrices(model, codec, kinds=kinds)
        return np.linalg.norm(logits(small) - before) / np.linalg.norm(before)

    assert gap(LowRank(0.9), ENCODER_MATRICES) < gap(LowRank(0.3), ENCODER_MATRICES)
    training = AutoencoderTraining(epochs=60, batch=8, rate=1e-2)
    narrow, wide = (Autoencoder(width, linear=True, training=training) for width in (0.4, 0.95))
    assert gap(wide, ["query", "value"]) < 0.9 * gap(narrow, ["query", "value"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["pooler"]}, "out of embeddings, query.*got pooler"),
        ({"kinds": []}, "each once"),
        ({"kinds": ["key", "key"]}, "each once"),
        ({"layers": [2]}, "layer 2 does not exist"),
        ({"codec": Kronecker(1.0)}, "nothing to do"),
        (
            {"codec": LowRank(0.05), "kinds": ["key"]},
            r"key: rank 1 of a \(16, 16\) matrix takes 32 numbers",
        ),
        ({"codec": Kronecker(0.1), "kinds": ["key"]}, "one term of key"),
        ({"codec": Autoencoder(0.9, importance="l1")}, "needs squared gradients of intermediate"),
        ({"codec": Autoencoder(0.25)}, "rows of output.*more than the budget"),
    ],
)
def test_bad_requests_are_refused_before_any_work(model, options, message):
    heard = []
    with pytest.raises(InputError, match=message):
        compress_matrices(
            model,
            **{"codec": LowRank(0.5), **options},
            progress=lambda what, fraction: heard.append(what),
        )
    assert not heard


def test_compressed_blocks_have_no_matrix_any_more(model):
    small, _ = nf.compress(model, nf.SVD(0.5), layers=[1])
    with pytest.raises(InputError, match=r"no dense matrix layer_1/mlp/w1.*before its block"):
        compress_matrices(small, LowRank(0.5))


def test_low_rank_is_a_codec_of_its_own():
    rows = jax.random.normal(jax.random.key(0), (8, 12))
    (found,) = LowRank(0.5).encode("x", [Matrix(rows, 48)], Workspace())
    assert found.code.num_parameters == 2 * 20
    with pytest.raises(InputError, match="above 0 and at most 1"):
        LowRank(0.0)
