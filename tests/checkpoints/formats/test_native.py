"""The native format: every kind of block comes back bit by bit, and nothing that was changed is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from ntkfusion.checkpoints.formats.native import header_digest
from ntkfusion.checkpoints.formats.native_layouts import BLOCKS, PARTS, static_types
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import CheckpointError
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.blocks.coded import Affine
from ntkfusion.models.model import random_model
from tests.helpers.saving import IDS, array, assert_same_model, coded, every_kind, fused, outputs


@pytest.fixture
def model(folder):
    return load_model(folder.write())


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_of_block(model, tmp_path, kind):
    small = model.replace_mlp_blocks({1: every_kind()[kind]})
    save_model(small, tmp_path / "out", format="ntkfusion", notes={"method": kind})
    again = load_model(tmp_path / "out")
    assert_same_model(again, small)
    assert (again.origin.config, again.origin.dtypes) == (small.origin.config, small.origin.dtypes)
    assert kind in (tmp_path / "out/README.md").read_text()


def test_the_function_is_the_same(model, tmp_path):
    small = model.replace_mlp_blocks({0: fused(5), 1: every_kind()["coded mixture"]})
    save_model(small, tmp_path / "out", format="ntkfusion")
    np.testing.assert_array_equal(outputs(load_model(tmp_path / "out")), outputs(small))


def test_original_blocks_and_tokenizer(minilm, tmp_path):
    save_model(minilm, tmp_path / "out", format="ntkfusion")
    again = load_model(tmp_path / "out")
    assert_same_model(again, minilm)
    assert again.tokenizer("Hello world")["input_ids"] == minilm.tokenizer("Hello world")["input_ids"]
    assert load_model(tmp_path / "out", tokenizer=False).tokenizer is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_take_no_more_than_in_the_original(folder, tmp_path, dtype):
    folder.tensors = {name: array.astype(dtype) for name, array in folder.tensors.items()}
    model = load_model(folder.write())
    save_model(model, tmp_path / "out", format="ntkfusion")
    assert {a.dtype for a in load_file(tmp_path / "out/ntkfusion.safetensors").values()} == {np.dtype(dtype)}
    assert_same_model(load_model(tmp_path / "out"), model)
    trained = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf + 1e-5, model.params))
    save_model(trained, tmp_path / "trained", format="ntkfusion")
    assert_same_model(load_model(tmp_path / "trained"), trained)


def test_float64(folder, tmp_path, x64):
    model = load_model(folder.write(), dtype="float64")
    model = model.replace_mlp_blocks({0: jax.tree.map(lambda a: a.astype("float64") / 3, fused(5))})
    save_model(model, tmp_path / "out", format="ntkfusion")
    assert_same_model(load_model(tmp_path / "out", dtype="float64"), model)
    single = load_model(tmp_path / "out")
    assert {leaf.dtype for leaf in jax.tree.leaves((single.params, single.constants))} == {np.dtype("float32")}
    assert outputs(single).dtype == np.float32


def test_dtype_that_is_asked_for(model, tmp_path):
    small = model.replace_mlp_blocks({0: fused(5)})
    save_model(small, tmp_path / "out", format="ntkfusion", dtype="bfloat16")
    again = load_model(tmp_path / "out")
    assert again.config == small.config
    np.testing.assert_allclose(again.mlp_blocks()[0].w1, fused(5).w1, rtol=1e-2)


def test_shared_decoders_are_stored_once_and_shared_again(model, tmp_path):
    decoder = (Affine(array(1, 3, 8), array(2, 8)),)
    small = model.replace_mlp_blocks({0: coded(decoder=decoder), 1: coded(decoder=decoder)})
    save_model(small, tmp_path / "out", format="ntkfusion")
    again = load_model(tmp_path / "out")
    assert_same_model(again, small)
    one, two = (block.w1.decoder[0].kernel for block in again.mlp_blocks())
    assert one is two
    assert "params/layer_1/mlp/w1/decoder/0/kernel" not in load_file(tmp_path / "out/ntkfusion.safetensors")


def test_heads(model, tmp_path):
    config = dataclasses.replace(model.config, num_labels=3, head="sequence-classification")
    classifier = random_model(config).replace_mlp_blocks({0: fused(5)})
    save_model(classifier, tmp_path / "out", format="ntkfusion")
    assert_same_model(load_model(tmp_path / "out"), classifier)
    bare = load_model(tmp_path / "out", head=None)
    assert bare.config.head is None
    expected = classifier.apply(classifier.params, input_ids=IDS).pooler_output
    np.testing.assert_array_equal(bare.apply(bare.params, input_ids=IDS).pooler_output, expected)
    with pytest.raises(CheckpointError, match="it is a model with the head 'sequence-classification'"):
        load_model(tmp_path / "out", head="masked-lm")


@pytest.mark.parametrize("kind", ["AutoConfig", pytest.param("AutoModel", marks=pytest.mark.oracle)])
def test_transformers_refuses(model, tmp_path, kind):
    save_model(model, tmp_path / "out", format="ntkfusion")
    with pytest.raises((OSError, ValueError)):
        getattr(transformers, kind).from_pretrained(tmp_path / "out")


def test_any_change_is_noticed(model, tmp_path):
    save_model(model.replace_mlp_blocks({0: fused(5)}), tmp_path / "out", format="ntkfusion")
    header, weights = tmp_path / "out/ntkfusion.json", tmp_path / "out/ntkfusion.safetensors"
    text, whole = header.read_text(), weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not what ntkfusion wrote (its digest differs)" in refusal(tmp_path / "out")
    weights.write_bytes(whole)
    header.write_text(text.replace('"gelu"', '"relu"'))
    assert "ntkfusion.json was changed since ntkfusion wrote it" in refusal(tmp_path / "out")
    header.write_text(text)
    weights.unlink()
    assert "ntkfusion.safetensors cannot be read" in refusal(tmp_path / "out")


def edited(**changes):
    return lambda contents: contents.update(changes)


def in_block(**changes):
    return lambda contents: contents["blocks"][0].update(changes)


def in_config(**changes):
    return lambda contents: contents["config"].update(changes)


SHAPE = {"shape": [8, 5], "dtype": "float32"}


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (edited(format="other"), "has the format 'other' version 1; this version of ntkfusion reads 'ntkfusion'"),
        (edited(version=2), "version 2; this version"),
        (edited(more=1), "missing, unknown or of another kind: more"),
        (edited(blocks={}), "of another kind: blocks"),
        (lambda contents: contents.pop("shared"), "of another kind: shared"),
        (edited(architecture="llama"), "architecture 'llama' is not supported"),
        (edited(shared={"a": 1}), "shared, digests and origin are not"),
        (edited(shared={"params/a": "params/b"}), "params/a is unexpected"),
        (edited(origin={}), "shared, digests and origin are not"),
        (edited(digests={}), "has digests of other tensors"),
        (lambda contents: contents["blocks"].pop(), "1 block layouts for 2 layers"),
        (in_block(kind="os.system"), "a block of the kind 'os.system'; this version knows dense"),
        (in_block(kind="latent"), "a block of the kind 'latent'"),
        (in_block(kind="masked"), "a masked part with the keys"),
        (in_block(more=None), "a dense part with the keys"),
        (in_block(activation="swiglu"), "do not fit together"),
        (in_block(activation=3), "a block whose activation is 3"),
        (in_block(w1=None), "do not fit together"),
        (in_block(w1={"kind": "eval"}), "a part of the kind 'eval'"),
        (in_block(w1=[[[[[[[]]]]]]]), "more than 5 deep"),
        (in_block(w1="x"), "'x' where a part was expected"),
        (in_block(w1=SHAPE | {"shape": [8, 10**12]}), "an array of the shape [8, 1000000000000]"),
        (in_block(w1=SHAPE | {"shape": [8, True]}), "an array of the shape"),
        (in_block(w1=SHAPE | {"dtype": "object"}), "an array described as"),
        (in_block(w1=SHAPE | {"shape": [8, 7]}), "do not fit together"),
        (in_config(hidden_size=10**9), "hidden_size must be a whole number"),
        (in_config(num_hidden_layers=2**24), "config asks for 16777216 layers"),
        (in_config(num_hidden_layers="2"), "num_hidden_layers must be a whole number"),
        (in_config(more=1), "config has missing or unknown keys: more"),
        (in_config(head="x"), "has no head 'x'"),
        (in_config(hidden_size=16), "do not fit together"),
        (in_config(vocab_size=14), "params/embeddings/word/embedding has shape (13, 8), expected (14, 8)"),
        (in_config(add_pooler=False), "params/pooler/bias is unexpected"),
    ],
)
def test_headers_that_cannot_be(model, tmp_path, edit, sentence):
    save_model(model.replace_mlp_blocks({0: fused(5)}), tmp_path / "out", format="ntkfusion")
    header = tmp_path / "out/ntkfusion.json"
    contents = json.loads(header.read_text())
    edit(contents)
    # whoever edits it on purpose can make the digest right
    header.write_text(json.dumps(contents | {"digest": header_digest(contents)}))
    assert sentence in refusal(tmp_path / "out")


def test_the_documented_example(tmp_path):
    page = (Path(__file__).parents[3] / "docs/formats.md").read_text()
    documented = json.loads(page.split("```json\n")[1].split("```")[0])
    sizes = {"vocab_size": 13, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 9}
    model = random_model(BertConfig(num_hidden_layers=1, intermediate_size=12, add_pooler=False, **sizes))
    small = model.replace_mlp_blocks({0: fused().replace(r=None)})
    save_model(small, tmp_path / "out", format="ntkfusion")
    found = json.loads((tmp_path / "out/ntkfusion.json").read_text())
    for contents in (documented, found):
        contents["digests"] = {*contents["digests"]}
        del contents["digest"], contents["written_by"]
    assert documented == found
    for kind, cls in (BLOCKS | PARTS).items():
        assert f"`{kind}`" in page
        assert all(f"`{field.name}`" in page for field in dataclasses.fields(cls))


def test_types_of_fields_that_are_no_arrays():
    found = {name: dict(static_types(cls)) for name, cls in (BLOCKS | PARTS).items()}
    assert {kind for types in found.values() for kind in types.values()} <= {str, bool, int | None}
    assert found["latent"] == {"transposed": bool, "decoder_share": int | None}
    assert found["mixture"] == {"train_router": bool}
    assert {name for name, types in found.items() if types == {"activation": str}} == {*BLOCKS} - {"mixture"}
