"""Tokenizers: read as their files say, written as these files were, anew only where they were changed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import struct

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.checkpoints.tokenizers import for_transformers_4, load_tokenizer
from ntkfusion.data.block_inputs import tokenize
from ntkfusion.errors import CheckpointError
from tests.helpers.sentence_folder import files_in, save_sentence_folder

ROBERTA, BERT = {"model_type": "roberta"}, {"model_type": "bert"}


def byte_level(post_processor=None):
    """A tokenizer of bytes, as the library tokenizers makes it for a RoBERTa."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def cased():
    """A WordPiece tokenizer that tells upper from lower case."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "hello"]
    tokenizer = Tokenizer(models.WordPiece(vocab={name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def only(tokenizer, config, **more):
    """What is loaded from a tokenizer.json, and other files if there are any."""
    files = {name: json.dumps(contents).encode() for name, contents in more.items()}
    return load_tokenizer({"tokenizer.json": tokenizer.to_str().encode(), **files}, {}, config, "here")


ENDED = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)])


@pytest.mark.parametrize("post_processor", [None, ENDED], ids=["none", "end"])
def test_roberta_with_tokenizer_json_only_gains_no_special_tokens(post_processor, caplog):
    stated = byte_level(post_processor)
    tokenizer = only(stated, ROBERTA)
    assert tokenizer("Hello world")["input_ids"] == stated.encode("Hello world").ids
    assert tokenizer("a", "b")["input_ids"] == stated.encode("a", "b").ids
    assert tokenizer.pad_token_id == 1
    assert "here: text is read as tokenizer.json says; transformers 5 would take" in caplog.text
    assert "post-processor" in caplog.text


def test_settings_beside_it_do_not_add_special_tokens_either():
    stated = byte_level()
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 9}
    tokenizer = only(stated, ROBERTA, **{"tokenizer_config.json": settings})
    assert tokenizer("bc")["input_ids"][-2:] == stated.encode("bc").ids[-2:]
    assert tokenizer.model_max_length == 9


def test_cased_tokenizer_json_only_stays_cased(caplog):
    assert only(cased(), BERT)("Hello hello")["input_ids"] == [5, 6]
    assert "normalizer" in caplog.text


def test_usual_tokenizers_are_loaded_without_a_word(minilm, caplog, tmp_path):
    save_model(minilm, tmp_path / "out")
    load_model(tmp_path / "out")
    assert caplog.text == ""


def beside(folder, files):
    """The model's folder with these files."""
    folder.write()
    for name, contents in files.items():
        (folder.path / name).write_bytes(contents)
    return folder.path


SLOW = {
    "vocab.txt": {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n"},
    "merges": {"vocab.json": b'{"<unk>": 0, "a": 1}', "merges.txt": b"#version: 0.2\n"},
    "spiece": {"spiece.model": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"},
    "bpe": {"sentencepiece.bpe.model": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"},
}


@pytest.mark.parametrize("kind", ["hf", "flax", "ntkfusion"])
@pytest.mark.parametrize("name", SLOW)
def test_slow_vocabularies_are_written_back(folder, tmp_path, name, kind):
    files = {**SLOW[name], "tokenizer_config.json": b'{"model_max_length" : 8}'}
    model = load_model(beside(folder, files), tokenizer=False)
    save_model(model, tmp_path / "out", format=kind)
    assert files.items() <= files_in(tmp_path / "out").items()
    assert "tokenizer.json" not in files_in(tmp_path / "out")


def test_slow_vocabulary_is_loaded_from_our_own_format(folder, tmp_path):
    model = load_model(beside(folder, SLOW["vocab.txt"]))
    save_model(model, tmp_path / "out", format="ntkfusion")
    again = load_model(tmp_path / "out").tokenizer
    assert again("Hello")["input_ids"] == model.tokenizer("Hello")["input_ids"] == [2, 5, 3]


def test_tokenizer_that_read_text_is_still_the_one_of_the_files(tmp_path):
    expected = save_sentence_folder(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    tokenize(model, ["a", "a b c d e f g h"], max_length=6)
    model.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=5)
    save_model(model, tmp_path / "out")
    assert expected.items() <= files_in(tmp_path / "out").items()


def test_changed_tokenizers_are_written_anew_and_that_is_said(tmp_path):
    expected = save_sentence_folder(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    model.tokenizer.add_tokens(["[NEW]"])
    save_model(model, tmp_path / "out")
    found, again = files_in(tmp_path / "out"), load_model(tmp_path / "out").tokenizer
    assert "vocab.txt" not in found  # of another tokenizer now
    assert found["1_Pooling/config.json"] == expected["1_Pooling/config.json"]
    assert "it was written anew" in found["README.md"].decode()
    assert again.get_vocab() == model.tokenizer.get_vocab()


@pytest.mark.parametrize(("name", "value"), [("pad_token", "[MASK]"), ("model_max_length", 5)])
def test_changed_settings_leave_vocabularies_as_they_are(tmp_path, name, value):
    expected = save_sentence_folder(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    setattr(model.tokenizer, name, value)
    save_model(model, tmp_path / "out")
    found, settings = files_in(tmp_path / "out"), ("tokenizer_config.json", "special_tokens_map.json")
    others = {path: contents for path, contents in expected.items() if path not in settings}
    assert others.items() <= found.items()
    assert f"Changed: {name} of the tokenizer, in tokenizer_config.json" in found["README.md"].decode()
    assert getattr(load_model(tmp_path / "out").tokenizer, name) == value


@pytest.mark.parametrize(("stated", "config"), [(byte_level(), ROBERTA), (cased(), BERT)], ids=["roberta", "bert"])
def test_written_tokenizers_are_the_same_to_transformers_itself(folder, tmp_path, stated, config):
    from transformers import AutoTokenizer

    tokenizer = only(stated, config)
    tokenizer.model_max_length = 7
    model = dataclasses.replace(load_model(folder.write()), tokenizer=tokenizer)
    save_model(model, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("Hello hello")["input_ids"] == stated.encode("Hello hello").ids
    assert (again.pad_token, again.model_max_length) == (tokenizer.pad_token, 7)


def test_tokenizers_of_another_model_replace_the_files(tmp_path, minilm):
    save_sentence_folder(tmp_path / "theirs")
    model = dataclasses.replace(load_model(tmp_path / "theirs"), tokenizer=minilm.tokenizer)
    save_model(model, tmp_path / "out")
    assert load_model(tmp_path / "out").tokenizer.get_vocab() == minilm.tokenizer.get_vocab()


def test_reading_text_does_not_change_a_tokenizer_that_is_written(folder, tmp_path):
    model = load_model(folder.write())
    tokenizer = only(cased(), BERT)
    model = dataclasses.replace(model, tokenizer=tokenizer)
    tokenize(model, ["hello hello hello"], max_length=3)
    save_model(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["truncation"] is None


GENERIC = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[X]"], "pad_token": "[PAD]"}


def settings_of(path):
    return json.loads((path / "tokenizer_config.json").read_text())


def test_generic_tokenizers_are_written_with_names_that_transformers_4_knows(folder, tmp_path):
    tokenizer = only(cased(), BERT, **{"tokenizer_config.json": GENERIC})
    assert type(tokenizer).__name__ == "TokenizersBackend"
    save_model(dataclasses.replace(load_model(folder.write()), tokenizer=tokenizer), tmp_path / "out")
    settings = settings_of(tmp_path / "out")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["[X]"]
    assert "extra_special_tokens" not in settings
    again = load_model(tmp_path / "out").tokenizer
    assert again("[X] Hello")["input_ids"] == tokenizer("[X] Hello")["input_ids"]
    assert again.all_special_tokens == tokenizer.all_special_tokens


def test_flax_folders_have_the_names_of_transformers_4_and_say_so(folder, tmp_path):
    text = json.dumps(GENERIC).encode()
    files = {"tokenizer.json": cased().to_str().encode(), "tokenizer_config.json": text}
    model = load_model(beside(folder, files))
    for kind in ("hf", "flax"):
        save_model(model, tmp_path / kind, format=kind)
    assert (tmp_path / "hf" / "tokenizer_config.json").read_bytes() == text
    assert settings_of(tmp_path / "flax")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "in place of transformers 5's" in (tmp_path / "flax" / "README.md").read_text()
    assert load_model(tmp_path / "flax").tokenizer("Hello")["input_ids"] == [5]


@pytest.mark.parametrize("contents", [b"{", b"[]", b"{}", b'{"tokenizer_class": "BertTokenizer"}'])
def test_settings_without_such_names_stay_as_they_are(contents):
    assert for_transformers_4({"tokenizer_config.json": contents}) is None


@pytest.fixture
def without(monkeypatch):
    """Pretend that packages are not installed."""
    found = importlib.util.find_spec

    def pretend(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else found(name))

    return pretend


@pytest.mark.parametrize("name", ["spiece", "bpe"])
def test_sentencepiece_that_is_missing_is_named(folder, without, name):
    without("sentencepiece", "google.protobuf")
    with pytest.raises(CheckpointError) as caught:
        load_model(beside(folder, SLOW[name]))
    message = str(caught.value)
    assert f"is a SentencePiece model ({next(iter(SLOW[name]))})" in message
    assert "`pip install sentencepiece protobuf`" in message
    assert "--no-tokenizer" in message
    assert "tiktoken" not in message
    assert load_model(folder.path, tokenizer=False).tokenizer is None


def test_only_the_package_that_is_missing_is_named(folder, without):
    without("google.protobuf")
    if importlib.util.find_spec("sentencepiece") is None:
        pytest.skip("the package sentencepiece is not installed")
    with pytest.raises(CheckpointError, match="`pip install protobuf`"):
        load_model(beside(folder, SLOW["spiece"]))


def field(number, value):
    """One field of a protocol buffer: bytes, a float, or a number below 128."""
    kind = {bytes: 2, float: 5, int: 0}[type(value)]
    tag = number << 3 | kind
    head = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
    if kind == 2:
        return head + bytes([len(value)]) + value
    return head + (struct.pack("<f", value) if kind == 5 else bytes([value]))


def sentencepiece_model(pieces):
    """The bytes of a unigram model: (text, score, kind) of every piece, and which ids have a meaning."""
    rows = [field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces]
    trainer = field(3, 1) + field(40, 1) + field(41, 2) + field(42, 3)  # unigram; unknown, beginning, end
    return b"".join(rows) + field(2, trainer) + field(3, field(1, b"identity"))


NORMAL, UNKNOWN, CONTROL = 1, 2, 3


def test_sentencepiece_models_are_read_where_the_package_is(folder, tmp_path):
    pytest.importorskip("sentencepiece")
    pieces = [("<pad>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN), ("[CLS]", 0.0, CONTROL), ("[SEP]", 0.0, CONTROL)]
    pieces += [("[MASK]", 0.0, CONTROL), ("▁he", -1.0, NORMAL), ("llo", -2.0, NORMAL), ("▁", -3.0, NORMAL)]
    contents = sentencepiece_model(pieces)
    tokenizer = load_tokenizer({"spiece.model": contents}, {}, {"model_type": "albert"}, "here")
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello")["input_ids"]) == ["[CLS]", "▁he", "llo", "[SEP]"]
    model = load_model(
        beside(folder, {"spiece.model": contents, "tokenizer_config.json": b'{"tokenizer_class": "AlbertTokenizer"}'})
    )
    save_model(model, tmp_path / "out")
    assert (tmp_path / "out" / "spiece.model").read_bytes() == contents
    assert "tokenizer.json" not in files_in(tmp_path / "out")


def test_tokenizer_files_that_were_not_fetched_are_not_passed_over(folder):
    path = beside(folder, {"tokenizer.json": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: it is a Git LFS pointer"):
        load_model(path)
    assert load_model(path, tokenizer=False).origin.left_behind.keys() == {"tokenizer.json"}
