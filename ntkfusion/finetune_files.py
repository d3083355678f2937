"""Small JSON files of a fine-tuning run, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ntkfusion.files import new_files


def write_json(path: Path, values: Any) -> None:
    """Write a file in one step, in the place of an earlier one."""
    with new_files([path], overwrite=True) as (new,):
        new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
