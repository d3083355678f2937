"""A tiny BERT in the layout of sentence-transformers, hand-made, with what must not be passed on among its files."""

from __future__ import annotations

import json
import string
from functools import lru_cache

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.bert.names import BERT
from ntkfusion.models.model import random_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LETTERS = string.ascii_lowercase + string.digits + string.punctuation
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
]
POOLING = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}

#: What must not be passed on: path → contents.
HARMFUL = {
    "pytorch_model.bin": b"PK\x03\x04 not opened",
    "training_args.bin": b"\x80\x02.",
    "vocabulary": b"\x80\x04\x95.",
    "custom.py": b"raise SystemExit('code of a checkpoint was run')",
    "tf_model.h5": b"old weights",
    "onnx/config.json": b"{}",
    "onnx/model.onnx": b"old weights",
    "2_Dense/pytorch_model.bin": b"\x80\x02.",
}


def tokenizer_json():
    """A tokenizer that knows letters, as sentence-transformers writes it: cut to 7 tokens."""
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.enable_truncation(7)
    return tokenizer.to_str().encode()


def other_files():
    """Path → contents of everything beside weights, configuration and model card that is to stay as it is."""
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 48}
    texts = {
        "modules.json": MODULES,
        "1_Pooling/config.json": POOLING,
        "2_Dense/config.json": {"in_features": 16, "out_features": 4},
        "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "dot", "prompts": {"query": "query: "}},
        "tokenizer_config.json": settings,
        "special_tokens_map.json": {"cls_token": "[CLS]"},
    }
    # spaces as nobody's writer has them: a file that was parsed and written again would differ
    files = {name: json.dumps(value, indent=3).encode() + b"\r\n \n" for name, value in texts.items()}
    return files | {
        "tokenizer.json": tokenizer_json(),
        "vocab.txt": "\n".join(VOCABULARY).encode(),
        "LICENSE": b"Do what you like.",
        "figures/curve.svg": b"<svg/>",
    }


@lru_cache
def tensors():
    """The network's tensors by name."""
    config = BertConfig(**SIZES, vocab_size=len(VOCABULARY), max_position_embeddings=64)
    named = BERT.named_tensors(random_model(config, seed=4).params, head=None)
    return {name: np.array(array, order="C") for name, array in named.items()}


def save_sentence_folder(path, *, harmful=True):
    """Write the folder.

    Returns:
        Path → contents of the files that every conversion is to keep.
    """
    sizes = {**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 64}
    files = other_files()
    written = {**files, **(HARMFUL if harmful else {}), "README.md": b"---\nlicense: mit\n---\nTheir card.\n"}
    for name, contents in {**written, "config.json": json.dumps({"model_type": "bert", **sizes}).encode()}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(contents)
    save_file(tensors(), path / "model.safetensors")
    save_file({"linear.weight": np.ones((4, 16), np.float32)}, path / "2_Dense" / "model.safetensors")
    files["2_Dense/model.safetensors"] = (path / "2_Dense" / "model.safetensors").read_bytes()
    return {**files, "README.original.md": written["README.md"]}


def files_in(folder):
    """Path → contents of every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
