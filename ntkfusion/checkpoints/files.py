"""Files of a checkpoint folder that are not weights: JSON objects, read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ntkfusion.errors import CheckpointError


def read_json_object(path: Path, source: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Args:
        path: the file.
        source: the checkpoint, for the error message.

    Returns:
        The object as a dictionary.

    Raises:
        CheckpointError: if the file cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(source, [f"{path.name} cannot be read: {error.strerror}"]) from error
    # ValueError covers invalid JSON, invalid UTF-8 and numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise CheckpointError(source, [f"{path.name} is not valid JSON ({error}); restore the file"]) from error
    if not isinstance(value, dict):
        raise CheckpointError(source, [f"{path.name} holds a {type(value).__name__}, expected a JSON object {{...}}"])
    return value
