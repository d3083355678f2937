"""Tokenizers: loaded by transformers, held to what their own files say, and written only where those do not do."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ntkfusion.checkpoints.sources import TOKENIZER_FILES
from ntkfusion.errors import CheckpointError, OutputWriteError
from ntkfusion.models.config import JsonObject
from ntkfusion.models.model import Model
from ntkfusion.utils.files import write_contents, writing

#: The file of a whole tokenizer, and what transformers notes beside it.
WHOLE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"

_SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")

#: The class of transformers 5 for a tokenizer that is only a ``tokenizer.json`` → its name in transformers 4.
_OLD_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


#: What errors call the copies of a tokenizer's files that transformers reads and writes.
_SCRATCH = f"a temporary copy of the tokenizer in {tempfile.gettempdir()}"


def is_tokenizer_file(path: str) -> bool:
    """Whether a file of a checkpoint is its tokenizer's.

    >>> is_tokenizer_file("spiece.model"), is_tokenizer_file("1_Pooling/config.json")
    (True, False)
    """
    return path in TOKENIZER_FILES or path.startswith("additional_chat_templates/")


def load_tokenizer(files: Mapping[str, bytes], left_behind: Mapping[str, str], config: JsonObject, source: str) -> Any:
    """The tokenizer of a checkpoint.

    What ``tokenizer.json`` says is held to where transformers 5 makes something of its own of it: it puts ``<s>`` and
    ``</s>`` around what a RoBERTa's tokenizer.json leaves as it is.

    Args:
        files: path in the checkpoint's folder → contents.
        left_behind: path of a file that could not be taken → why.
        config: the contents of ``config.json``, by which transformers chooses the class.
        source: how the user called the checkpoint.

    Returns:
        The tokenizer; None if there are no files of one.

    Raises:
        CheckpointError: if the files are damaged, or need a package that is not installed.
    """
    if missing := [f"{name}: {reason}" for name, reason in left_behind.items() if is_tokenizer_file(name)]:
        raise CheckpointError(source, [f"a file of its tokenizer cannot be used ({problem})" for problem in missing])
    if not any(is_tokenizer_file(name) for name in files):
        return None
    _check_packages(files, source)
    try:
        tokenizer, replaced = _loaded(files, config, source)
    except OutputWriteError:  # there is no room for the copy that is read
        raise
    # whatever a broken file makes transformers or tokenizers raise (the latter raises bare Exception)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        problem = f"its tokenizer files cannot be used ({reason}); repair them, or {_WITHOUT}"
        raise CheckpointError(source, [problem]) from error
    if replaced:
        _log.warning(
            "%s: text is read as tokenizer.json says; transformers 5 would take %s of its %s instead",
            source,
            " and ".join(replaced),
            type(tokenizer).__name__,
        )
    return tokenizer


_log = logging.getLogger(__name__)

_WITHOUT = "load without: tokenizer=False, or --no-tokenizer where a command can do without"


def _check_packages(files: Mapping[str, bytes], source: str) -> None:
    """Refuse a SentencePiece model that nothing here can read; transformers would ask for tiktoken."""
    names = [name for name in _SENTENCEPIECE if name in files]
    packages = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    missing = [package for module, package in packages.items() if not _is_installed(module)]
    if names and missing and WHOLE not in files:
        raise CheckpointError(
            source,
            [
                f"its tokenizer is a SentencePiece model ({names[0]}), which needs the extra `sentencepiece` of "
                f"ntkfusion: run `pip install {' '.join(missing)}`, or {_WITHOUT}"
            ],
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _loaded(files: Mapping[str, bytes], config: JsonObject, source: str) -> tuple[Any, list[str]]:
    """The tokenizer, and the parts of it that are not those that transformers would take."""
    from transformers import AutoTokenizer

    # from a copy of what is kept, without links and weights: what is read now is what will be written back
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kept = {name: contents for name, contents in files.items() if "/" not in name} | _chat(files)
        with writing(_SCRATCH):
            write_contents(folder, kept | {"config.json": json.dumps(dict(config)).encode()})
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        replaced = _hold_to_file(tokenizer, folder) if (folder / WHOLE).exists() else []
    tokenizer.name_or_path = source
    return tokenizer, replaced


def _chat(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: contents for name, contents in files.items() if "/" in name and is_tokenizer_file(name)}


def _hold_to_file(tokenizer: Any, folder: Path) -> list[str]:
    """Give a tokenizer the parts of ``tokenizer.json`` that transformers replaced by its class's; their names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    stated = Tokenizer.from_file(str(folder / WHOLE))
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8")) if (folder / SETTINGS).exists() else {}
    # without settings nothing else says how text is read
    parts = [] if settings else [part for part in _PARTS if str(getattr(backend, part)) != str(getattr(stated, part))]
    if _frames(backend) != _frames(stated):
        parts.append("post_processor")
    for part in parts:
        setattr(backend, part, getattr(stated, part))
    return [part.replace("_", "-") for part in parts]


#: What a text goes through on its way to tokens, and back.
_PARTS = ("normalizer", "pre_tokenizer", "decoder")


def _frames(backend: Any) -> list[list[int]]:
    """The special tokens around nothing, and around a pair of nothings."""
    was = backend.truncation
    backend.no_truncation()
    frames = [backend.encode("").ids, backend.encode("", "").ids]
    if was is not None:
        backend.enable_truncation(**was)
    return frames


def tokenizer_config(model: Model) -> JsonObject:
    """What stands in ``config.json``, as far as the choice of a tokenizer's class goes."""
    return {"model_type": model.config.model_type, **model.origin.config}


def changed_tokenizer(model: Model) -> tuple[dict[str, bytes], str] | None:
    """The files of a tokenizer that is not the one that the files of the model's checkpoint make.

    Where only settings differ (a padding token, a maximal length), only settings are written; else all of it, so that
    transformers makes this very tokenizer of the files.

    Args:
        model: the model.

    Returns:
        Path → contents of all its files, and what was changed, in words; None without a tokenizer, and if the
        checkpoint's own files do.
    """
    tokenizer, config = model.tokenizer, tokenizer_config(model)
    if tokenizer is None:
        return None
    kept = {name: contents for name, contents in model.origin.files.items() if is_tokenizer_file(name)}
    before = _made_of(kept, config)
    if before is not None and _whole(before) == _whole(tokenizer):
        changed = {name: value for name, value in _settings(tokenizer).items() if _settings(before)[name] != value}
        if not changed:
            return None
        files = _with_settings(kept, changed)
        # a token that is no padding any more is no longer an added one to transformers, whatever tokenizer.json says
        if _makes(files, config, tokenizer, added_tokens=False):
            return files, f"{', '.join(sorted(changed))} of the tokenizer, in {SETTINGS}"
    return _written(tokenizer, config), "the tokenizer is not the one of the original's files: it was written anew"


def _written(tokenizer: Any, config: JsonObject) -> dict[str, bytes]:
    """A tokenizer's files by transformers; of a class that takes ``tokenizer.json`` as it is, if its own would not."""
    with tempfile.TemporaryDirectory() as scratch:
        with writing(_SCRATCH):
            tokenizer.save_pretrained(scratch)
        folder = Path(scratch)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    files = for_transformers_4(files) or files
    if WHOLE not in files or SETTINGS not in files or _makes(files, config, tokenizer):
        return files
    return _with_settings(files, {"tokenizer_class": _OLD_CLASSES["TokenizersBackend"]})


def _made_of(files: Mapping[str, bytes], config: JsonObject) -> Any:
    """The tokenizer that files make; None if there are none, or they are damaged."""
    try:
        return _loaded(files, config, "")[0] if any(map(is_tokenizer_file, files)) else None
    except OutputWriteError:
        raise
    except Exception:  # as in `load_tokenizer`
        return None


def _makes(files: Mapping[str, bytes], config: JsonObject, tokenizer: Any, *, added_tokens: bool = True) -> bool:
    """Whether files make a tokenizer, in transformers without our help too."""
    try:
        made, replaced = _loaded(files, config, "")
    except OutputWriteError:
        raise
    except Exception:  # as in `load_tokenizer`
        return False
    one, other = (_whole(each, added_tokens=added_tokens) for each in (made, tokenizer))
    return not replaced and one == other and _settings(made) == _settings(tokenizer)


def _with_settings(files: Mapping[str, bytes], changed: JsonObject) -> dict[str, bytes]:
    """A tokenizer's files with some settings set anew."""
    tokens = {name: value for name, value in changed.items() if name.endswith("_token")}
    changes = {SETTINGS: changed, SPECIAL: tokens} if SPECIAL in files and tokens else {SETTINGS: changed}
    written = {name: {**json.loads(files.get(name, b"{}")), **values} for name, values in changes.items()}
    return {**files, **{name: _json(values) for name, values in written.items()}}


def _json(values: JsonObject) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _whole(tokenizer: Any, *, added_tokens: bool = True) -> list[object]:
    """What makes tokens of a text; not to which length one was last cut or filled."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str()) | _NEUTRAL
    pipeline |= {} if added_tokens else {"added_tokens": None}
    return [pipeline, *(getattr(tokenizer, name, None) for name in ("extra_special_tokens", "chat_template"))]


_NEUTRAL = {"truncation": None, "padding": None}


def _settings(tokenizer: Any) -> dict[str, object]:
    """What else there is to a tokenizer, as it stands in its settings."""
    names = ("model_max_length", "padding_side", "truncation_side", "model_input_names")
    tokens = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return {name: getattr(tokenizer, name, None) for name in (*names, *tokens)}


def for_transformers_4(files: Mapping[str, bytes]) -> dict[str, bytes] | None:
    """A tokenizer's files with what transformers 4 would stumble over said in its words, which version 5 knows too.

    Args:
        files: path → contents.

    Returns:
        All files; None if there is nothing to change.
    """
    try:
        settings = json.loads(files.get(SETTINGS, b"{}"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(settings, dict):
        return None
    changed = dict(settings)
    if changed.get("tokenizer_class") in _OLD_CLASSES:
        changed["tokenizer_class"] = _OLD_CLASSES[changed["tokenizer_class"]]
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if changed == settings:
        return None
    return {**files, SETTINGS: _json(changed)}
