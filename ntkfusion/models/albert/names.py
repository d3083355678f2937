"""The names of ALBERT's tensors, with and without the ``albert.`` prefix."""

from __future__ import annotations

from ntkfusion.models.bert.names import BUFFERS, DECODER_TIES, embedding, lm_head
from ntkfusion.models.name_table import LAYER, NameTable, layer_norm, linear

_THEIRS = f"encoder.albert_layer_groups.{LAYER}.albert_layers.0"

_OURS = f"group_{LAYER}"

ALBERT = NameTable(
    architecture="ALBERT",
    prefix="albert.",
    base=(
        embedding("word"),
        embedding("position"),
        embedding("token_type"),
        *layer_norm("embeddings.LayerNorm", "embeddings/norm"),
        *linear("encoder.embedding_hidden_mapping_in", "embedding_map"),
        *linear(f"{_THEIRS}.attention.query", f"{_OURS}/attention/query"),
        *linear(f"{_THEIRS}.attention.key", f"{_OURS}/attention/key"),
        *linear(f"{_THEIRS}.attention.value", f"{_OURS}/attention/value"),
        *linear(f"{_THEIRS}.attention.dense", f"{_OURS}/attention/output"),
        *layer_norm(f"{_THEIRS}.attention.LayerNorm", f"{_OURS}/attention_norm"),
        *linear(f"{_THEIRS}.ffn", f"{_OURS}/mlp", "w1", "b1"),
        *linear(f"{_THEIRS}.ffn_output", f"{_OURS}/mlp", "w2", "b2"),
        *layer_norm(f"{_THEIRS}.full_layer_layer_norm", f"{_OURS}/mlp_norm"),
        *linear("pooler", "pooler", optional=True),
    ),
    heads={
        "sequence-classification": linear("classifier", "classifier"),
        "token-classification": linear("classifier", "classifier"),
        "question-answering": linear("qa_outputs", "qa_outputs"),
        "masked-lm": lm_head("predictions", "dense", "LayerNorm"),
    },
    labels={"sequence-classification": "classifier/kernel", "token-classification": "classifier/kernel"},
    tied=DECODER_TIES,
    left_aside={**BUFFERS, r"sop_classifier\..*": "a sentence order head, which is not modelled"},
)
