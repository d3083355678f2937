"""The names of GPT-2's tensors, with and without the ``transformer.`` prefix.

The checkpoints store most matrices as (in, out), as we do: they are not transposed. Heads are PyTorch's Linear.
"""

from __future__ import annotations

from ntkfusion.models.name_table import LAYER, NameTable, Rule, linear


def _affine(tensor: str, path: str, weight: str = "kernel", bias: str = "bias") -> tuple[Rule, Rule]:
    return Rule(f"{tensor}.weight", f"{path}/{weight}"), Rule(f"{tensor}.bias", f"{path}/{bias}")


_THEIRS = f"h.{LAYER}"

_OURS = f"layer_{LAYER}"

GPT2 = NameTable(
    architecture="GPT-2",
    prefix="transformer.",
    base=(
        Rule("wte.weight", "embeddings/word/embedding"),
        Rule("wpe.weight", "embeddings/position/embedding"),
        *_affine(f"{_THEIRS}.ln_1", f"{_OURS}/attention_norm", "scale"),
        *_affine(f"{_THEIRS}.attn.c_attn", f"{_OURS}/attention/qkv"),
        *_affine(f"{_THEIRS}.attn.c_proj", f"{_OURS}/attention/output"),
        *_affine(f"{_THEIRS}.ln_2", f"{_OURS}/mlp_norm", "scale"),
        *_affine(f"{_THEIRS}.mlp.c_fc", f"{_OURS}/mlp", "w1", "b1"),
        *_affine(f"{_THEIRS}.mlp.c_proj", f"{_OURS}/mlp", "w2", "b2"),
        *_affine("ln_f", "norm", "scale"),
    ),
    heads={
        "causal-lm": (Rule("lm_head.weight", "lm_head/kernel", transposed=True),),
        "sequence-classification": (Rule("score.weight", "score/kernel", transposed=True),),
        "token-classification": linear("classifier", "classifier"),
        "question-answering": linear("qa_outputs", "qa_outputs"),
    },
    labels={"sequence-classification": "score/kernel", "token-classification": "classifier/kernel"},
    tied={"lm_head/kernel": "embeddings/word/embedding"},
    left_aside={
        r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)": "the causal mask, which every model makes anew",
        r"multiple_choice_head\..*": "a multiple choice head, which is not modelled",
    },
)

#: Weight matrices by kind, as `ntkfusion.models.bert.names.ENCODER_MATRICES`.
GPT2_MATRICES = {
    "embeddings": "embeddings/word/embedding",
    "qkv": f"{_OURS}/attention/qkv/kernel",
    "attention_output": f"{_OURS}/attention/output/kernel",
    "intermediate": f"{_OURS}/mlp/w1",
    "output": f"{_OURS}/mlp/w2",
}
