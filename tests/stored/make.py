"""Ask PyTorch what the tests with the fixture `oracle` want to know, and store the answers beside the versions.

``uv run --extra test --extra oracle python -m tests.stored.make`` makes all files anew in 3 minutes; given files of
tests, only what those want to know. The wide tier checks that the files are what this makes (to rounding).
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import pytest

from tests.helpers.oracle import STORED, stored_file
from tests.stored.transformers4 import STORED_FILE


def main(tests: list[str]) -> int:
    """Make the files.

    Args:
        tests: files of tests; all if there are none.

    Returns:
        pytest's exit code.
    """
    # what transformers 4 says is made in a venv of its own
    every = [file for file in STORED.glob("*.npz") if file != STORED_FILE]
    for file in [stored_file(test) for test in tests] if tests else every:
        file.unlink(missing_ok=True)
    code = pytest.main(["-n", "0", "-m", "recorded", "--record", *tests])
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    (STORED / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    sizes = [file.stat().st_size for file in STORED.glob("*.npz")]
    print(f"{len(sizes)} files, {sum(sizes) / 1000:.0f} kB")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
