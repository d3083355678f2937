"""The names of BERT's and RoBERTa's tensors, old and new, with and without prefix; XLM-RoBERTa has RoBERTa's."""

from __future__ import annotations

import dataclasses

from ntkfusion.models.name_table import LAYER, NameTable, Rule, layer_norm, linear


def embedding(name: str) -> Rule:
    """One of the three tables."""
    return Rule(f"embeddings.{name}_embeddings.weight", f"embeddings/{name}/embedding")


_THEIRS = f"encoder.layer.{LAYER}"

_OURS = f"layer_{LAYER}"

#: The bare network, the same in RoBERTa.
ENCODER = (
    embedding("word"),
    embedding("position"),
    embedding("token_type"),
    *layer_norm("embeddings.LayerNorm", "embeddings/norm"),
    *linear(f"{_THEIRS}.attention.self.query", f"{_OURS}/attention/query"),
    *linear(f"{_THEIRS}.attention.self.key", f"{_OURS}/attention/key"),
    *linear(f"{_THEIRS}.attention.self.value", f"{_OURS}/attention/value"),
    *linear(f"{_THEIRS}.attention.output.dense", f"{_OURS}/attention/output"),
    *layer_norm(f"{_THEIRS}.attention.output.LayerNorm", f"{_OURS}/attention_norm"),
    *linear(f"{_THEIRS}.intermediate.dense", f"{_OURS}/mlp", "w1", "b1"),
    *linear(f"{_THEIRS}.output.dense", f"{_OURS}/mlp", "w2", "b2"),
    *layer_norm(f"{_THEIRS}.output.LayerNorm", f"{_OURS}/mlp_norm"),
    *linear("pooler.dense", "pooler", optional=True),
)

#: What the decoder of a masked language model is, unless it is untied.
DECODER_TIES = {"lm_head/decoder/kernel": "embeddings/word/embedding", "lm_head/decoder/bias": "lm_head/bias"}

#: Buffers in the files of older versions.
BUFFERS = {r"(\w+\.)?embeddings\.(position_ids|token_type_ids)": "a buffer that every model makes anew"}


def lm_head(tensor: str, dense: str, norm: str) -> tuple[Rule, ...]:
    """The head of a masked language model below `tensor`, whose parts are named differently everywhere."""
    return (
        *linear(f"{tensor}.{dense}", "lm_head/dense"),
        *layer_norm(f"{tensor}.{norm}", "lm_head/norm"),
        Rule(f"{tensor}.bias", "lm_head/bias"),
        *linear(f"{tensor}.decoder", "lm_head/decoder"),
    )


BERT = NameTable(
    architecture="BERT",
    prefix="bert.",
    base=ENCODER,
    heads={
        "sequence-classification": linear("classifier", "classifier"),
        "token-classification": linear("classifier", "classifier"),
        "question-answering": linear("qa_outputs", "qa_outputs"),
        "masked-lm": lm_head("cls.predictions", "transform.dense", "transform.LayerNorm"),
    },
    labels={"sequence-classification": "classifier/kernel", "token-classification": "classifier/kernel"},
    tied=DECODER_TIES,
    left_aside={**BUFFERS, r"cls\.seq_relationship\..*": "a next sentence head, which is not modelled"},
)

ROBERTA = NameTable(
    architecture="RoBERTa",
    prefix="roberta.",
    base=ENCODER,
    heads={
        "sequence-classification": (
            *linear("classifier.dense", "classifier/dense"),
            *linear("classifier.out_proj", "classifier/output"),
        ),
        "token-classification": linear("classifier", "classifier"),
        "question-answering": linear("qa_outputs", "qa_outputs"),
        "masked-lm": lm_head("lm_head", "dense", "layer_norm"),
    },
    labels={"sequence-classification": "classifier/output/kernel", "token-classification": "classifier/kernel"},
    tied=DECODER_TIES,
    left_aside=BUFFERS,
)

XLM_ROBERTA = dataclasses.replace(ROBERTA, architecture="XLM-RoBERTa")

#: Weight matrices by kind. Rows of embeddings are tokens; the rows of all others are output neurons, which are columns
#: of our kernels (inputs × outputs).
ENCODER_MATRICES = {
    "embeddings": "embeddings/word/embedding",
    "query": f"layer_{LAYER}/attention/query/kernel",
    "key": f"layer_{LAYER}/attention/key/kernel",
    "value": f"layer_{LAYER}/attention/value/kernel",
    "attention_output": f"layer_{LAYER}/attention/output/kernel",
    "intermediate": f"layer_{LAYER}/mlp/w1",
    "output": f"layer_{LAYER}/mlp/w2",
}
