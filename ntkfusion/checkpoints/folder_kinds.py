"""Folders that are not simply a model: what they are, and what to do with them."""

from __future__ import annotations

from pathlib import Path

from ntkfusion.checkpoints.formats.native import HEADER
from ntkfusion.checkpoints.formats.tensors import read_json_object
from ntkfusion.checkpoints.other_files import MODULES, read_modules
from ntkfusion.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"

#: How the files of adapters are called, by peft and by the library adapters.
_ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.*", "pytorch_adapter.bin", "adapter.safetensors")

_MERGE = (
    "Merge it into its base once, where you trust it: peft.AutoPeftModel.from_pretrained(folder).merge_and_unload()"
    ".save_pretrained(out)"
)


def check_folder(folder: Path, source: str, *, ignore_adapter: bool) -> None:
    """Refuse a folder that would be loaded as something else than it is, or that holds no model at its top.

    Args:
        folder: the checkpoint.
        source: how the user called it.
        ignore_adapter: whether the base weights are wanted though there is an adapter beside them.

    Raises:
        CheckpointError: saying what it is and what to do.
    """
    adapters = sorted({path.name for pattern in _ADAPTER_FILES for path in folder.glob(pattern)})
    is_model = (folder / "config.json").exists() or (folder / HEADER).exists()
    if not is_model:
        raise CheckpointError(source, [_adapter_only(folder, adapters) if adapters else _no_config(folder)])
    if not adapters or ignore_adapter:
        return
    if not _has_weights(folder):
        raise CheckpointError(source, [_adapter_only(folder, adapters)])
    raise CheckpointError(
        source,
        [
            f"it holds an adapter ({', '.join(adapters)}) beside the base weights, which would not be applied. "
            f"{_MERGE}; or take the base weights alone: --ignore-adapter, load_model(..., ignore_adapter=True)"
        ],
    )


def _has_weights(folder: Path) -> bool:
    """Whether there are weights beside an adapter's; pickles count, whose own refusal says more."""
    kinds = ("model*.safetensors*", "flax_model*.msgpack*", "pytorch_model*.bin", HEADER)
    return any(True for kind in kinds for _ in folder.glob(kind))


def _adapter_only(folder: Path, adapters: list[str]) -> str:
    return (
        f"it holds an adapter only ({', '.join(adapters)}), no model{_base_of(folder)}. {_MERGE}, and give that folder"
    )


def _base_of(folder: Path) -> str:
    """The model that an adapter says it is for."""
    try:
        base = read_json_object(folder / ADAPTER_CONFIG, str(folder)).get("base_model_name_or_path")
    except CheckpointError:
        return ""
    return f"; its base is {base!r}" if isinstance(base, str) and base else ""


def _no_config(folder: Path) -> str:
    problem = "it has no config.json; expected a Hugging Face model folder"
    inner = _models_inside(folder)
    network = next((path for path, kind in read_modules(folder) if kind.endswith(".Transformer")), None)
    if network in inner:
        return (
            f"it is a folder of sentence-transformers' older layout, with the network in {network}: give "
            f"{folder / network}, and put what comes out in its place, beside {_listed(folder)}"
        )
    if inner:
        return f"{problem}. There are models inside: give {' or '.join(str(folder / name) for name in inner[:3])}"
    return problem


def _models_inside(folder: Path) -> list[str]:
    """Subfolders, and their subfolders, that are models."""
    found = {path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")}
    found |= {path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{HEADER}")}
    return sorted(path.relative_to(folder).as_posix() for path in found if _has_weights(path))


def _listed(folder: Path) -> str:
    """The other parts of sentence-transformers' list."""
    others = [path for path, kind in read_modules(folder) if path and not kind.endswith(".Transformer")]
    return ", ".join([*others, MODULES])
