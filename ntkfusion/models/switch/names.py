"""The names of a Switch Transformer's tensors."""

from __future__ import annotations

from ntkfusion.models.name_table import EXPERT, LAYER, NameTable, Rule

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _matrix(tensor: str, path: str) -> Rule:
    return Rule(f"{tensor}.weight", path, transposed=True)


def _attention(tensor: str, path: str) -> tuple[Rule, ...]:
    return tuple(_matrix(f"{tensor}.{theirs}", f"{path}/{ours}/kernel") for theirs, ours in _ATTENTION.items())


def _mlp(tensor: str, path: str) -> tuple[Rule, ...]:
    """A dense block, or in its place a router with experts."""
    expert = f"{tensor}.experts.expert_{EXPERT}"
    return (
        _matrix(f"{tensor}.wi", f"{path}/w1"),
        _matrix(f"{tensor}.wo", f"{path}/w2"),
        _matrix(f"{tensor}.router.classifier", f"{path}/router"),
        _matrix(f"{expert}.wi", f"{path}/experts/w1"),
        _matrix(f"{expert}.wo", f"{path}/experts/w2"),
    )


def _norm(tensor: str, path: str) -> Rule:
    return Rule(f"{tensor}.weight", f"{path}/scale")


def _stack(side: str, parts: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    """One stack, whose layers have these attentions, and the MLP block behind them."""
    theirs, ours = f"{side}.block.{LAYER}.layer", f"{side}/layer_{LAYER}"
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rules = [Rule(f"{side}.embed_tokens.weight", f"embeddings/{side}/embedding")]
    rules += [Rule(bias, f"{side}/position_bias/embedding"), _norm(f"{side}.final_layer_norm", f"{side}/norm")]
    for place, (name, path) in enumerate(parts):
        rules += _attention(f"{theirs}.{place}.{name}", f"{ours}/{path}")
        rules.append(_norm(f"{theirs}.{place}.layer_norm", f"{ours}/{path}_norm"))
    rules += _mlp(f"{theirs}.{len(parts)}.mlp", f"{ours}/mlp")
    return (*rules, _norm(f"{theirs}.{len(parts)}.layer_norm", f"{ours}/mlp_norm"))


_SELF, _CROSS = ("SelfAttention", "attention"), ("EncDecAttention", "cross_attention")

_WORD = "embeddings/word/embedding"

SWITCH = NameTable(
    architecture="Switch Transformer",
    prefix="",
    base=(Rule("shared.weight", _WORD), *_stack("encoder", (_SELF,)), *_stack("decoder", (_SELF, _CROSS))),
    heads={
        "seq2seq-lm": (_matrix("lm_head", "lm_head/kernel"),),
        "sequence-classification": (
            _matrix("classification_head.dense", "classification_head/dense/kernel"),
            Rule("classification_head.dense.bias", "classification_head/dense/bias"),
            _matrix("classification_head.out_proj", "classification_head/out_proj/kernel"),
            Rule("classification_head.out_proj.bias", "classification_head/out_proj/bias"),
        ),
    },
    labels={"sequence-classification": "classification_head/out_proj/kernel"},
    tied={
        "embeddings/encoder/embedding": _WORD,
        "embeddings/decoder/embedding": _WORD,
        "lm_head/kernel": _WORD,
    },
    left_aside={
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
            "attention to the encoder has no positions"
        ),
    },
)
