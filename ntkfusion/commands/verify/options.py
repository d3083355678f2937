"""The options of ``ntkfusion verify``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ntkfusion.commands.protocol import Flag


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check every statement of the theory against measured outputs and kernels; exit code 1 if one fails.

    Every check brings controls: comparisons with something wrong on purpose, which must fail.

    Attributes:
        checks: Names of checks; by default all.
        quick: Fewer cases, widths and layers: under a minute.
        model: Run the checks that depend on data on this model's blocks: a folder, or a hub id such as `org/name`. By
            default on the packaged demo model, if it is installed.
        text: A UTF-8 file with one sentence per line for that model; by default sentences that ship with the package.
        seed: Drives every random choice.
        out: Folder for the report; by default results/verify.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
        overwrite: Replace an earlier report in that folder.
    """

    checks: tuple[str, ...] = ()
    quick: Flag = False
    model: str | None = None
    text: Path | None = None
    seed: int = 0
    out: Path | None = None
    ignore_adapter: Flag = False
    overwrite: Flag = False
