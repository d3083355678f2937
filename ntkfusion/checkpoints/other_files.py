"""What lies beside the weights of a checkpoint: read with the model, and written back as it is.

A file that this library does not understand may be what gives the model its meaning: sentence-transformers' pooling, a
tokenizer's own vocabulary, a licence. So everything is copied but weights, which are no longer those of the model, and
what can run code. Files are read when the model is: what becomes of the folder afterwards does not matter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from ntkfusion.utils.files import MARKER

#: The original's model card, beside ours.
ORIGINAL_CARD = "README.original.md"

#: How a card of ours begins.
CARD_TITLE = "# A model saved by ntkfusion"

#: Bytes above which a file is left behind: tokenizers are smaller, and what is kept is kept in memory.
LARGEST_FILE = 2**26

#: Files of one subfolder above which it is no part of a model.
MOST_FILES = 1000

#: sentence-transformers' list of what follows the network, each in a folder of its own.
MODULES = "modules.json"

#: What `load_model` reads itself, and what this library writes anew.
_READ = (
    "config.json",
    MARKER,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "flax_model.msgpack",
    "flax_model-*-of-*.msgpack",
    "flax_model.msgpack.index.json",
    "flax_model.digests.json",
    "ntkfusion.json",
    "ntkfusion.safetensors",
)

_PICKLE = "it is a pickle or an archive of pickles, which can run code"

_WEIGHTS = "it holds weights, which are not those of the saved model"

_PROGRAM = "it is a program, and code of a checkpoint is never passed on"

_HIDDEN = "it is hidden: a program's own, or private"

_ADAPTER = "it belongs to an adapter, which was ignored"

#: How the names of files begin or end that are left behind → why.
_LEFT_BEHIND = {
    "adapter_config.json": _ADAPTER,
    "adapter_model.*": _ADAPTER,
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.dill"), _PICKLE),
    **dict.fromkeys(("*.npy", "*.npz"), _PICKLE),
    **dict.fromkeys(("*.safetensors", "*.msgpack", "*.h5", "*.hdf5", "*.keras", "*.ot", "*.pb", "*.tflite"), _WEIGHTS),
    **dict.fromkeys(("*.onnx", "*.onnx_data", "*.onnx.data", "*.mlmodel", "*.gguf", "*.ggml"), _WEIGHTS),
    **dict.fromkeys(("*.bin.index.json", "*.h5.index.json", "*.safetensors.index.json"), _WEIGHTS),
    **dict.fromkeys(("*.py", "*.pyc", "*.pyd", "*.so", "*.dll", "*.dylib", "*.exe", "*.sh", "*.bat"), _PROGRAM),
}

#: How a pickle of protocols 2 to 5 begins, and a zip archive, which is what PyTorch writes, whatever their names are.
_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")

_LFS = b"version https://git-lfs"


def read_other_files(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Every file of a checkpoint that is neither its configuration nor its weights.

    Args:
        folder: the checkpoint.

    Returns:
        Path in the folder, with slashes, → contents of what is to be written back; and path → why it is not.
    """
    files: dict[str, bytes] = {}
    left: dict[str, str] = {}
    modules = _module_folders(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            reason = _reason_to_leave_folder(path, is_module=path.name in modules)
            members = [] if reason else _members(path)
            left |= {_shown(f"{path.name}/"): reason} if reason else {}
        else:
            members = [] if any(fnmatch(path.name, pattern) for pattern in _READ) else [path]
        for member in members:
            _take(folder, member, files, left, is_module=path.name in modules)
    return _with_original_card(files), left


def _take(folder: Path, path: Path, files: dict[str, bytes], left: dict[str, str], *, is_module: bool) -> None:
    """Put one file among those that are kept, or those that are left behind."""
    name = path.relative_to(folder).as_posix()
    try:
        reason = _reason_to_leave(folder, path, is_module=is_module)
        contents = b"" if reason else path.read_bytes()
    except OSError as error:
        reason, contents = f"it cannot be read: {error.strerror}", b""
    reason = reason or _reason_by_contents(contents)
    if reason:
        left[_shown(name)] = reason
    else:
        files[name] = contents


def _reason_to_leave(folder: Path, path: Path, *, is_module: bool) -> str | None:
    """Why a file is not copied, by its name and kind; opening some kinds of files would wait forever."""
    if not path.name.isprintable():
        return "its name cannot be printed"
    if path.name.startswith("."):
        return _HIDDEN
    if not path.is_file():
        return "it is no ordinary file, or a link that leads nowhere"
    if not _is_inside(folder, path):
        return "it is a link to a file outside of the folder"
    if path.stat().st_size > LARGEST_FILE:
        return f"it has more than {LARGEST_FILE // 2**20} MiB"
    if is_module and path.suffix.lower() == ".safetensors":
        return None  # the weights of a layer behind the network, which nobody changed
    return next(_reasons_by_name(path), None)


def _reason_by_contents(contents: bytes) -> str | None:
    if contents.startswith(_MAGIC):
        return _PICKLE
    if contents.startswith(_LFS):
        return "it is a Git LFS pointer, not the file: run `git lfs pull` in the folder"
    return None


def _is_inside(folder: Path, path: Path) -> bool:
    """Whether a file lies in the folder: a link elsewhere could carry a private file into a published one.

    The hub's cache keeps contents beside its folders of links.
    """
    place, home = path.resolve(), folder.resolve()
    cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    return any(place.is_relative_to(allowed) for allowed in (home, *cache))


def _reason_to_leave_folder(path: Path, *, is_module: bool) -> str | None:
    if path.name.startswith("."):
        return _HIDDEN
    if path.is_symlink():
        return "it is a link to another folder"
    try:
        members = [*islice(_members(path), MOST_FILES + 1)]
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if path / MARKER in members:
        return "it is another result of ntkfusion"
    if len(members) > MOST_FILES:
        return f"it has more than {MOST_FILES} files"
    if not is_module and any(_holds_weights(member) for member in members):
        return "it holds weights of its own, which are not those of the saved model"
    return None


def _holds_weights(path: Path) -> bool:
    return not {_WEIGHTS, _PICKLE, _ADAPTER}.isdisjoint(_reasons_by_name(path))


def _reasons_by_name(path: Path) -> Iterator[str]:
    name = path.name.lower()
    return (reason for pattern, reason in _LEFT_BEHIND.items() if fnmatch(name, pattern))


def _members(path: Path) -> Iterator[Path]:
    """The files below a folder, in order; not those of hidden folders, nor behind links."""
    for place, folders, names in os.walk(path, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names))


def _raise(error: OSError) -> None:
    raise error


def _module_folders(folder: Path) -> set[str]:
    """The subfolders that sentence-transformers' list names; none if there is no list that can be read."""
    return {path.split("/")[0] for path, _ in read_modules(folder) if path}


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """(folder, class) of every entry of sentence-transformers' list; none if there is no list that can be read."""
    try:
        entries = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [(str(entry.get("path", "")), str(entry.get("type", ""))) for entry in entries]


def _with_original_card(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, their README.md under a name that stays free; a card of ours is written anew."""
    others = {name: contents for name, contents in files.items() if name != "README.md"}
    card = files.get("README.md", b"")
    return others if not card or card.startswith(CARD_TITLE.encode()) else others | {ORIGINAL_CARD: card}


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
