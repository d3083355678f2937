"""Index files of sharded checkpoints: which tensor is in which file, and that no file lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntkfusion.checkpoints.files import read_json_object
from ntkfusion.errors import CheckpointError


def read_index(
    folder: Path, index: str, suffix: str, source: str, problems: list[str]
) -> tuple[dict[str, str], list[str]]:
    """What an index says.

    Args:
        folder: the checkpoint.
        index: the file's name.
        suffix: how the names of shards must end.
        source: the checkpoint, for errors.
        problems: takes shards that are missing, or outside of the folder.

    Returns:
        Tensor → shard, and the shards that are there, in order.

    Raises:
        CheckpointError: if the index is no index.
    """
    weight_map: Any = read_json_object(folder / index, source).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(source, [f"{index} has no 'weight_map' from tensor names to file names"])
    there = []
    for shard in sorted(set(weight_map.values())):
        # "..", absolute and nested names all contain a separator or are no such file
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(suffix):
            problems.append(f"{index} names the shard {shard!r}; expected a {suffix} file in the same folder")
        elif not _is_file(folder / shard):
            problems.append(f"{shard}, a shard that {index} lists, is missing: download it again")
        else:
            there.append(shard)
    return weight_map, there


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that the file system cannot have
        return False
