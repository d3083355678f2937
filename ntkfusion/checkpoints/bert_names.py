"""The names of BERT's tensors, old and new, with and without the ``bert.`` prefix."""

from __future__ import annotations

from ntkfusion.checkpoints.names import LAYER, NameTable, Rule


def _linear(
    tensor: str, path: str, weight: str = "kernel", bias: str = "bias", *, optional: bool = False
) -> tuple[Rule, Rule]:
    return (
        Rule(f"{tensor}.weight", f"{path}/{weight}", transposed=True, optional=optional),
        Rule(f"{tensor}.bias", f"{path}/{bias}", optional=optional),
    )


def _layer_norm(tensor: str, path: str) -> tuple[Rule, Rule]:
    # TensorFlow's names live on in early PyTorch checkpoints
    scale = Rule(f"{tensor}.weight", f"{path}/scale", aliases=(f"{tensor}.gamma",))
    return scale, Rule(f"{tensor}.bias", f"{path}/bias", aliases=(f"{tensor}.beta",))


def _embedding(name: str) -> Rule:
    return Rule(f"embeddings.{name}_embeddings.weight", f"embeddings/{name}/embedding")


_THEIRS = f"encoder.layer.{LAYER}"
_OURS = f"layer_{LAYER}"

BERT = NameTable(
    architecture="BERT",
    prefix="bert.",
    base=(
        _embedding("word"),
        _embedding("position"),
        _embedding("token_type"),
        *_layer_norm("embeddings.LayerNorm", "embeddings/norm"),
        *_linear(f"{_THEIRS}.attention.self.query", f"{_OURS}/attention/query"),
        *_linear(f"{_THEIRS}.attention.self.key", f"{_OURS}/attention/key"),
        *_linear(f"{_THEIRS}.attention.self.value", f"{_OURS}/attention/value"),
        *_linear(f"{_THEIRS}.attention.output.dense", f"{_OURS}/attention/output"),
        *_layer_norm(f"{_THEIRS}.attention.output.LayerNorm", f"{_OURS}/attention_norm"),
        *_linear(f"{_THEIRS}.intermediate.dense", f"{_OURS}/mlp", "w1", "b1"),
        *_linear(f"{_THEIRS}.output.dense", f"{_OURS}/mlp", "w2", "b2"),
        *_layer_norm(f"{_THEIRS}.output.LayerNorm", f"{_OURS}/mlp_norm"),
        *_linear("pooler.dense", "pooler", optional=True),
    ),
    heads={"sequence-classification": _linear("classifier", "classifier")},
    labels={"sequence-classification": "classifier/kernel"},
    left_aside={
        r"(bert\.)?embeddings\.(position_ids|token_type_ids)": "a buffer that every model makes anew",
        r"cls\..*": "a pretraining head (masked words, next sentence), which is not modelled",
        r"qa_outputs\..*": "a question answering head, which is not modelled",
    },
)
