"""What commands print in narrow terminals: rich's own way cuts names and numbers."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import ntkfusion
from ntkfusion.commands.inspect.run import BlockFacts, KernelMemory, blocks_table, memory_table, parts_table
from ntkfusion.commands.verify.report import verification_table
from ntkfusion.kernels.estimate import Estimate
from ntkfusion.utils.console_tables import print_table
from ntkfusion.verification.registry import STATEMENTS
from tests.helpers.as_users import as_users


def shown(table, width):
    out = io.StringIO()
    print_table(Console(file=out, width=width), table)
    return out.getvalue()


def verified():
    """A table of every check, as `verify` prints it."""
    outcome = SimpleNamespace(controls=(), rows=(), passed=True)
    findings = [SimpleNamespace(check=SimpleNamespace(name=name), outcome=outcome, seconds=61.7) for name in STATEMENTS]
    with as_users():
        return verification_table(SimpleNamespace(findings=findings))


def inspected():
    """The tables of `inspect`, with what each holds."""
    blocks = (BlockFacts("64 experts, dense", 3072, "gelu_new", ("q", "r"), 1_181_568, 4_726_272),)
    kernels = (
        KernelMemory("block (shape 1)", "512 tokens, traced", Estimate(2**31, 2**20, 512, 2**33)),
        KernelMemory("network", "32 sentences of 64 tokens, C=2", "does not fit: 12 GiB are needed, 4 GiB are there"),
    )
    parts = {"embeddings": 11_917_824, "norms, pooler, heads": 156_672}
    return blocks_table(blocks), parts_table(parts), memory_table(kernels)


@pytest.mark.parametrize("width", [10, 20, 30, 40, 60, 80])
def test_verify_cuts_no_name(width):
    text = shown(verified(), width)
    assert "…" not in text
    assert all(name in text for name in STATEMENTS)
    assert text.count("61.7") == len(STATEMENTS)


@pytest.mark.parametrize("width", [10, 20, 30, 40, 60, 80])
def test_inspect_keeps_its_numbers(width):
    text = "".join(shown(table, width) for table in inspected())
    assert "…" not in text
    for number in ("3072", "1,181,568", "4.5", "11,917,824", "156,672", "98.7 %", "2.0 GiB", "1.0 MiB"):
        assert number in text, number


def test_every_table_is_printed_by_the_one_function_that_cuts_nothing():
    """A table that is handed to a console itself loses numbers in narrow terminals."""
    root = Path(ntkfusion.__file__).parent
    for path in [*root.rglob("*.py"), *(root.parent / "experiments" / "common").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        printed = [
            call.args[0]
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "print"
            if call.args and path.name != "console_tables.py"
        ]
        tables = [ast.unparse(each) for each in printed if "table" in ast.unparse(each).split("(")[0]]
        assert not tables, (path, tables)
