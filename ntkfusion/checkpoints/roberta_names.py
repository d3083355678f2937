"""The names of RoBERTa's tensors, with and without the ``roberta.`` prefix; XLM-RoBERTa's are the same."""

from __future__ import annotations

import dataclasses

from ntkfusion.checkpoints.bert_names import BUFFERS, DECODER_TIES, ENCODER, linear, lm_head
from ntkfusion.checkpoints.names import NameTable

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
