"""Checkpoint folders by hand, as each writer makes them: transformers 4 in PyTorch and Flax, transformers 5,
sentence-transformers.

Plain NumPy, so that the venv of transformers 4 can import it (`tests/stored/transformers4.py`): there the writers are
checked against `save_pretrained`, and what the classes compute is stored.
"""

from __future__ import annotations

import dataclasses
import json
import zlib

import numpy as np

WRITERS = ("torch4", "flax4", "torch5", "sentence-transformers")

VOCAB, WIDTH, NEURONS, POSITIONS, LABELS, EMBEDDED = 17, 8, 12, 16, 3, 4

_ENCODER = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": NEURONS, "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
_DECODER = {
    "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_inner": NEURONS, "n_positions": POSITIONS,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip

CONFIGS = {
    "bert": _ENCODER,
    "roberta": _ENCODER | {"pad_token_id": 1},
    "xlm-roberta": _ENCODER | {"pad_token_id": 1},
    "albert": _ENCODER | {"embedding_size": EMBEDDED, "num_hidden_groups": 2, "hidden_act": "gelu_new"},
    "gpt2": _DECODER,
}

CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "albert": "Albert", "gpt2": "GPT2"}

PREFIXES = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "albert": "albert.",
    "gpt2": "transformer.",
}

ENCODER_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
DECODER_HEADS = ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: an architecture, a head, and what is unusual about its configuration."""

    architecture: str
    ending: str
    tied: bool = True
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self):
        """A name for files and tests."""
        said = "".join(f"-{key}={value}" for key, value in self.options)
        return f"{self.architecture}-{self.ending}{'' if self.tied else '-untied'}{said}"

    @property
    def config(self):
        """The contents of config.json."""
        own = {"model_type": self.architecture, "architectures": [CLASSES[self.architecture] + self.ending]}
        labels = {str(index): f"LABEL_{index}" for index in range(LABELS)}
        heads = {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
        if self.ending == "ForSequenceClassification" and self.architecture == "gpt2":
            heads |= {"pad_token_id": 0}
        config = CONFIGS[self.architecture] | own | (heads if self.ending.endswith("Classification") else {})
        return config | ({} if self.tied else {"tie_word_embeddings": False}) | dict(self.options)

    @property
    def is_language_model(self):
        """Whether it has an output layer over words."""
        return self.ending in ("ForMaskedLM", "LMHeadModel")

    @property
    def has_flax_class(self):
        """Whether transformers 4 has a Flax class that computes it."""
        if self.architecture == "gpt2" and self.ending not in ("Model", "LMHeadModel"):
            return False
        return not any(key.startswith("scale_attn") or value == "gelu_fast" for key, value in self.options)


def _cases():
    for architecture in CONFIGS:
        gpt2 = architecture == "gpt2"
        for ending in DECODER_HEADS if gpt2 else ENCODER_HEADS:
            yield Case(architecture, ending)
            if ending in ("ForMaskedLM", "LMHeadModel"):
                yield Case(architecture, ending, tied=False)
        act = "activation_function" if gpt2 else "hidden_act"
        for activation in ("relu", "silu", "gelu_new", "gelu_fast"):
            yield Case(architecture, "LMHeadModel" if gpt2 else "ForMaskedLM", options=((act, activation),))
    for option in (("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True)):
        yield Case("gpt2", "LMHeadModel", options=(option,))


CASES = tuple(_cases())


def _encoder_shapes(name):
    side = EMBEDDED if name == "albert" else WIDTH
    shapes = {f"embeddings.{kind}_embeddings.weight": (rows, side) for kind, rows in (
        ("word", VOCAB), ("position", POSITIONS), ("token_type", 2))}  # fmt: skip
    shapes |= _norm("embeddings.LayerNorm", side)
    for index in range(2):
        if name == "albert":
            layer = f"encoder.albert_layer_groups.{index}.albert_layers.0"
            linears = {f"attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value", "dense")}
            linears |= {"ffn": (NEURONS, WIDTH), "ffn_output": (WIDTH, NEURONS)}
            norms = ("attention.LayerNorm", "full_layer_layer_norm")
        else:
            layer = f"encoder.layer.{index}"
            linears = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
            linears |= {"attention.output.dense": (WIDTH, WIDTH)}
            linears |= {"intermediate.dense": (NEURONS, WIDTH), "output.dense": (WIDTH, NEURONS)}
            norms = ("attention.output.LayerNorm", "output.LayerNorm")
        for part, shape in linears.items():
            shapes |= _linear(f"{layer}.{part}", *shape)
        for part in norms:
            shapes |= _norm(f"{layer}.{part}", WIDTH)
    if name == "albert":
        shapes |= _linear("encoder.embedding_hidden_mapping_in", WIDTH, EMBEDDED)
    return shapes


def _decoder_shapes():
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (POSITIONS, WIDTH)} | _norm("ln_f", WIDTH)
    for index in range(2):
        for part, rows, columns in (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
                                    ("mlp.c_fc", WIDTH, NEURONS), ("mlp.c_proj", NEURONS, WIDTH)):  # fmt: skip
            shapes |= {f"h.{index}.{part}.weight": (rows, columns), f"h.{index}.{part}.bias": (columns,)}
        shapes |= _norm(f"h.{index}.ln_1", WIDTH) | _norm(f"h.{index}.ln_2", WIDTH)
    return shapes


def _linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name, size):
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _head_shapes(case):
    name, roberta = case.architecture, "roberta" in case.architecture
    if case.ending == "ForSequenceClassification" and name == "gpt2":
        return {"score.weight": (LABELS, WIDTH)}
    if case.ending == "ForSequenceClassification" and roberta:
        return _linear("classifier.dense", WIDTH, WIDTH) | _linear("classifier.out_proj", LABELS, WIDTH)
    if case.ending.endswith("Classification"):
        return _linear("classifier", LABELS, WIDTH)
    if case.ending == "ForQuestionAnswering":
        return _linear("qa_outputs", 2, WIDTH)
    if case.ending != "ForMaskedLM":
        return {}
    start, dense, norm = {
        "bert": ("cls.predictions", "transform.dense", "transform.LayerNorm"),
        "albert": ("predictions", "dense", "LayerNorm"),
    }.get(name, ("lm_head", "dense", "layer_norm"))
    side = EMBEDDED if name == "albert" else WIDTH
    return _linear(f"{start}.{dense}", side, WIDTH) | _norm(f"{start}.{norm}", side) | {f"{start}.bias": (VOCAB,)}


def _drawn(case, name, shape):
    rng = np.random.default_rng(zlib.crc32(f"{case.architecture} {name}".encode()))
    values = rng.normal(size=shape) * 0.3
    return (values + (len(shape) == 1 and name.endswith("weight"))).astype(np.float32)


def _has_pooler(case):
    sequence = case.ending == "ForSequenceClassification" and "roberta" not in case.architecture
    return case.architecture != "gpt2" and (case.ending == "Model" or sequence)


def tensors_of(case, writer):
    """The tensors that a writer stores: by PyTorch's names, or Flax's tree."""
    decoder = case.architecture == "gpt2"
    base = _decoder_shapes() if decoder else _encoder_shapes(case.architecture)
    if _has_pooler(case):
        base |= _linear("pooler" if case.architecture == "albert" else "pooler.dense", WIDTH, WIDTH)
    arrays = {name: _drawn(case, name, shape) for name, shape in base.items()}
    prefix = "" if case.ending == "Model" else PREFIXES[case.architecture]
    tensors = {prefix + name: array for name, array in arrays.items()}
    tensors |= {name: _drawn(case, name, shape) for name, shape in _head_shapes(case).items()}
    if case.is_language_model and not case.tied:
        tensors |= _untied(case, writer, tensors)
    return _as_flax(tensors) if writer == "flax4" else tensors


def _untied(case, writer, tensors):
    """An output layer of its own; transformers 5 stores its bias a second time, the others only as the head's."""
    if case.architecture == "gpt2":
        return {"lm_head.weight": _drawn(case, "lm_head.weight", (VOCAB, WIDTH))}
    (bias,) = (name for name in tensors if name.removesuffix(".bias") in ("cls.predictions", "predictions", "lm_head"))
    start = bias.removesuffix(".bias")
    side = EMBEDDED if case.architecture == "albert" else WIDTH
    decoder = {f"{start}.decoder.weight": _drawn(case, "decoder.weight", (VOCAB, side))}
    return decoder | ({f"{start}.decoder.bias": tensors[bias]} if writer == "torch5" else {})


def _as_flax(tensors):
    tree = {}
    for name, array in tensors.items():
        *path, last = name.split(".")
        table = path[-1] in ("wte", "wpe") or path[-1].endswith("_embeddings")
        if last == "weight":
            last = "embedding" if table else "scale" if array.ndim == 1 else "kernel"
        inner = tree
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = np.ascontiguousarray(array.T) if last == "kernel" else array
    return tree


def flat_tree(tree, path=()):
    """Keys joined by slashes → array."""
    flat = {}
    for key, value in tree.items():
        flat |= flat_tree(value, (*path, key)) if isinstance(value, dict) else {"/".join((*path, key)): value}
    return flat


def write_folder(folder, case, writer):
    """The folder that a writer makes of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = case.config | {"transformers_version": "5.0.0" if writer == "torch5" else "4.53.3"}
    config["dtype" if writer == "torch5" else "torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = tensors_of(case, writer)
    if writer == "flax4":
        (folder / "flax_model.msgpack").write_bytes(packed(tensors))
        return folder
    from safetensors.numpy import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if writer == "sentence-transformers":
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def packed(tree):
    """A tree as `flax.serialization` packs it."""
    import msgpack

    def leaf(array):
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))

    return msgpack.packb(tree, default=leaf, strict_types=True)


def inputs(config):
    """Padded token ids, without the token that RoBERTa pads with among the words."""
    pad = config.get("pad_token_id") or 0
    mask = (np.arange(7)[None, :] < np.array([7, 4])[:, None]).astype(np.int32)
    words = np.random.default_rng(1).integers(2, VOCAB, size=mask.shape).astype(np.int32)
    return {"input_ids": np.where(mask, words, pad).astype(np.int32), "attention_mask": mask}


def outputs_of(found):
    """What is compared: logits (of spans: starts and ends), or the last hidden states; both as NumPy arrays."""
    if getattr(found, "start_logits", None) is not None:
        return np.stack([np.asarray(found.start_logits), np.asarray(found.end_logits)], axis=-1)
    logits = getattr(found, "logits", None)
    return np.asarray(found.last_hidden_state if logits is None else logits)
