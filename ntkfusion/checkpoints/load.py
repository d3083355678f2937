"""`load_model`: a checkpoint of any kind → a `Model`, with an account of every tensor.

Which head it has: what the user asks for, what its configuration says, or what its tensors are.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, cast

import jax.numpy as jnp

from ntkfusion.checkpoints.audit import Audit, Matching, match_tensors, read_parameters
from ntkfusion.checkpoints.flax_classes import import_problems
from ntkfusion.checkpoints.folder_kinds import check_folder
from ntkfusion.checkpoints.formats import msgpack as msgpack_reader
from ntkfusion.checkpoints.formats import safetensors as safetensors_reader
from ntkfusion.checkpoints.formats.native import HEADER, read_native
from ntkfusion.checkpoints.formats.tensors import TensorSource, read_json_object
from ntkfusion.checkpoints.other_files import read_other_files
from ntkfusion.checkpoints.sources import find_folder
from ntkfusion.checkpoints.tokenizers import load_tokenizer, tokenizer_config
from ntkfusion.checkpoints.wrappers import unwrapped
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.config import LARGEST_SIZE, WITH_LABELS, Head, JsonObject, ModelConfig
from ntkfusion.models.model import Model, Origin, abstract_params
from ntkfusion.models.registry import architecture_of, head_of_class, read_config
from ntkfusion.utils.parameter_paths import Params, parameter_paths

#: What `load_model` takes: a head, None for the bare network, or "auto" for the head that the checkpoint has.
WantedHead: TypeAlias = Head | Literal["auto"] | None


def with_head(config: ModelConfig, matching: Matching, original: JsonObject, wanted: WantedHead) -> ModelConfig:
    """The configuration with the head, and the other optional parts, that the checkpoint is loaded with.

    Args:
        config: the configuration of the bare network.
        matching: the checkpoint's tensors.
        original: the contents of ``config.json``.
        wanted: a head, None, or "auto".

    Returns:
        The configuration.

    Raises:
        CheckpointError: if a head is wanted that the file has no tensors of, or "auto" of a checkpoint whose class is
            not modelled.
        InputError: if a head is wanted that the architecture does not have.
    """
    head = cast(Head | None, _own_head(config, matching, original) if wanted == "auto" else wanted)
    if head is not None and head not in config.HEADS:
        raise InputError(f"{config.architecture} has no head {head!r}; it has {', '.join(config.HEADS)}")
    if head is not None and not _is_there(config, matching, head):
        problem = f"it has no tensors of the head {head!r}; load another head (or None), and put a fresh one on it"
        raise CheckpointError(matching.source, [problem])
    num_labels = _num_labels(matching, head) if head in WITH_LABELS else None
    return dataclasses.replace(config, head=head, num_labels=num_labels).with_parts(matching.matched.keys())


def _own_head(config: ModelConfig, matching: Matching, original: JsonObject) -> Head | None:
    """The head of the class that the checkpoint names; if it names none, the one whose tensors it has."""
    classes = original.get("architectures")
    names = [classes] if isinstance(classes, str) else classes
    if not isinstance(names, Sequence) or not names or not isinstance(names[0], str):
        return _guessed_head(config, matching)
    try:
        head = head_of_class(config, names[0])
    except InputError as error:
        # the same tensors may be read otherwise: a multiple choice has those of a classifier with one label
        raise CheckpointError(matching.source, [f"config.json: {error}. {_OTHER_HEADS}"]) from error
    if head is not None and not _is_there(config, matching, head):
        problem = f"config.json names the class {names[0]}, and there are no tensors of its head {head!r}"
        raise CheckpointError(matching.source, [f"{problem}. {_OTHER_HEADS}"])
    return head


_OTHER_HEADS = (
    "head=None loads the network without its head (`ntkfusion convert MODEL OUT --no-head` writes a folder of it), and "
    "head='...' reads the tensors as a head that you know them to be"
)


def _guessed_head(config: ModelConfig, matching: Matching) -> Head | None:
    there: list[Head] = [head for head in config.HEADS if _is_there(config, matching, head)]
    own: list[Head] = [head for head in there if _tensors_of(matching, head)]
    if not own and _has_prefix(matching):
        return there[0] if there else None  # a head that is tied leaves nothing of its own
    return next((head for head in own if config.may_have(head, matching.matched.keys())), None)


def _tensors_of(matching: Matching, head: Head) -> list[str]:
    """Paths of a head's own parameters that the file holds."""
    return [rule.path for rule in matching.table.heads.get(head, ()) if rule.path in matching.matched]


def _has_prefix(matching: Matching) -> bool:
    """Whether the names are those of a network with a head."""
    prefix = matching.table.prefix
    return prefix != "" and any(tensor.info.name.startswith(prefix) for tensor in matching.matched.values())


def _is_there(config: ModelConfig, matching: Matching, head: Head) -> bool:
    """Whether the file holds something of a head, or the head needs nothing that the base has not."""
    rules = matching.table.heads.get(head, ())
    tied = config.tie_word_embeddings and bool(rules) and all(rule.path in matching.table.tied for rule in rules)
    return tied or bool(_tensors_of(matching, head))


def _num_labels(matching: Matching, head: Head | None) -> int | None:
    """The labels by the shapes of the head's tensors; wrong ones are the audit's to report."""
    if head is None or head not in matching.table.labels:
        return None
    path = matching.table.labels[head]
    kernel, bias = matching.shape(path), matching.shape(path.replace("kernel", "bias"))
    rows = next((shape[0] for shape in (kernel, bias) if shape), 1)
    return min(max(rows, 1), LARGEST_SIZE)


_log = logging.getLogger(__name__)


def load_model(
    source: str | os.PathLike[str],
    *,
    head: WantedHead = "auto",
    dtype: str = "float32",
    tokenizer: bool = True,
    ignore_adapter: bool = False,
) -> Model:
    """Load a pretrained model: the packaged demo, a Hugging Face folder, or a model from the hub.

    Args:
        source: ``"minilm"`` for the packaged demo model (a folder of that name is ``"./minilm"``), a folder with
            config.json and safetensors or Flax msgpack weights (single or sharded), or a hub id such as ``"org/name"``.
        head: ``"auto"`` takes the head that the checkpoint has; or one of its heads by name, or None for the bare
            network. Weights are never made up: a head that the file does not hold is an error.
        dtype: ``"float32"`` or ``"float64"`` (which needs JAX's x64 mode); other stored floats are converted.
        tokenizer: whether to load the tokenizer too. A checkpoint without one gives a model without one. Its files
            are written back by `save_model` in either case.
        ignore_adapter: whether to take the base weights where an adapter lies beside them, which is refused else.

    Returns:
        The model. A pooler is there if the file holds one and the head reads it.

    Raises:
        CheckpointError: with everything that is wrong with the checkpoint. Pickles and remote code are never touched.
        InputError: for a dtype that cannot be used, or a head that the architecture does not have.
    """
    return load_with_audit(source, head=head, dtype=dtype, tokenizer=tokenizer, ignore_adapter=ignore_adapter)[0]


def load_with_audit(
    source: str | os.PathLike[str],
    *,
    head: WantedHead = "auto",
    dtype: str = "float32",
    tokenizer: bool = True,
    ignore_adapter: bool = False,
) -> tuple[Model, Audit]:
    """Like `load_model`, and also return what became of every tensor.

    Args:
        source: as for `load_model`.
        head: as for `load_model`.
        dtype: as for `load_model`.
        tokenizer: as for `load_model`.
        ignore_adapter: as for `load_model`.

    Returns:
        The model and the `Audit`.

    Raises:
        CheckpointError: with everything that is wrong with the checkpoint.
        InputError: as `load_model`.
    """
    _check_dtype(dtype)
    folder, name = find_folder(source), str(source)
    check_folder(folder, name, ignore_adapter=ignore_adapter)
    files, left_behind = read_other_files(folder)
    if (folder / HEADER).exists() and not (folder / "config.json").exists():
        model, audit = read_native(folder, name, dtype)
        origin = dataclasses.replace(model.origin, files=files, left_behind=left_behind)
        loaded = load_tokenizer(files, left_behind, tokenizer_config(model), name) if tokenizer else None
        return dataclasses.replace(_with_wanted_head(model, head), tokenizer=loaded, origin=origin), audit
    original = _read_contents(folder, name)
    config = _parsed(original, name)
    stored = _open_weights(folder, name)
    opened, renamed = unwrapped(stored, architecture_of(config).names)
    matching = match_tensors(opened, architecture_of(config).names)
    if opened.statement.fields:
        _refuse(name, opened.statement.config_problems(with_head(config, matching, original, "auto")))
    config = with_head(config, matching, original, head)
    if isinstance(stored, msgpack_reader.MsgpackFolder):
        _refuse(name, import_problems(config, matching, opened))
    loaded = load_tokenizer(files, left_behind, original, name) if tokenizer else None
    params, audit = read_parameters(opened, matching, config, dtype)
    audit = dataclasses.replace(audit, notes=_notes(stored, renamed))
    for note in audit.notes:
        _log.warning("%s: %s", name, note)
    for tensor, reason in audit.left_aside.items():
        _log.info("%s: %s is left aside: %s", name, tensor, reason)
    origin = Origin(original, _dtypes(matching), files, left_behind)
    return Model(config, params, tokenizer=loaded, source=name, origin=origin), audit


def _refuse(source: str, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(source, problems)


def _notes(stored: TensorSource, renamed: str | None) -> tuple[str, ...]:
    around = stored.notes if isinstance(stored, msgpack_reader.MsgpackFolder) else ()
    return around if renamed is None else (*around, renamed)


def _with_wanted_head(model: Model, head: WantedHead) -> Model:
    """The model, or the network without its head."""
    if head in ("auto", model.config.head):
        return model
    if head is not None:
        problem = f"it is a model with {f'the head {model.config.head!r}' if model.config.head else 'no head'}"
        raise CheckpointError(model.source, [f"{problem}; load it with head='auto', and put a fresh head on it"])
    config = dataclasses.replace(model.config, head=None, num_labels=None)
    config = config.with_parts(parameter_paths(model.params))
    params = _restricted(model.params, abstract_params(config))
    return dataclasses.replace(model, config=config, params=params)


def _restricted(tree: Params, expected: Params) -> Params:
    """The part of a tree that is there in another one."""
    both = {key: value for key, value in tree.items() if key in expected}
    return {key: _restricted(value, expected[key]) if isinstance(value, dict) else value for key, value in both.items()}


def _open_weights(folder: Path, source: str) -> TensorSource:
    """Safetensors if there are any, else Flax msgpack."""
    if any((folder / file).exists() for file in (safetensors_reader.SINGLE, safetensors_reader.INDEX)):
        return safetensors_reader.open_safetensors(folder, source)
    if any((folder / file).exists() for file in (msgpack_reader.SINGLE, msgpack_reader.INDEX)):
        return msgpack_reader.open_msgpack(folder, source)
    return safetensors_reader.open_safetensors(folder, source)  # says what is missing


def _dtypes(matching: Matching) -> dict[str, str]:
    """Canonical name, without prefix → how the tensor is stored."""
    places = [(tensor.place, tensor.info.dtype) for tensor in matching.matched.values()]
    return {matching.table.tensor_of(place.path, place.expert): dtype for place, dtype in places}


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    if dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise InputError(
            "dtype='float64' needs JAX's double precision: call jax.config.update('jax_enable_x64', True) first"
        )


def _read_contents(folder: Path, source: str) -> JsonObject:
    return read_json_object(folder / "config.json", source)


def _parsed(contents: JsonObject, source: str) -> ModelConfig:
    try:
        return read_config(contents)
    except InputError as error:
        raise CheckpointError(source, [str(error).replace("config:", "config.json:", 1)]) from error
