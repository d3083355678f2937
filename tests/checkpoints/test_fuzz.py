"""Broken checkpoints, hundreds of them: each ends in a typed error, or in a model that equals the original."""

from __future__ import annotations

import resource
import time
from collections import Counter

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ntkfusion.checkpoints.formats.statement import function_fields
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import NTKFusionError
from tests.helpers.mutations import EVERY_KIND, numbers
from tests.helpers.saving import assert_same_tensors, coded, every_kind, fused

FORMATS = ("hf", "sharded", "flax", "sharded flax", "own", "own coded")


@pytest.fixture(params=FORMATS)
def written(request, folder, tmp_path):
    """A folder that this library wrote."""
    model = load_model(folder.write())
    match request.param:
        case "own":
            model = model.replace_mlp_blocks({0: every_kind()["masked"], 1: fused(5)})
        case "own coded":
            model = model.replace_mlp_blocks({0: coded(), 1: every_kind()["mixture"]})
    kind = {"hf": "hf", "sharded": "hf", "flax": "flax", "sharded flax": "flax"}.get(request.param, "ntkfusion")
    save_model(model, tmp_path / "out", format=kind, max_shard_size=2000 if "sharded" in request.param else 10**9)
    return tmp_path / "out"


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stat().st_size and path.suffix != ".md"}


def load(files, folder):
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return load_model(folder)


def named(model):
    trees = (model.params, model.constants)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}


def assert_equal(model, original):
    """The same function: what only matters for training may differ."""
    assert function_fields(model.config) == function_fields(original.config)
    assert model.config.mlp_layouts == original.config.mlp_layouts
    assert_same_tensors(named(model), named(original))


def run(written, folder, number, check):
    """Break a folder in `number` ways; how many ended how."""
    files, original = contents_of(written), load_model(written)
    outcomes, before, slowest = Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    for seed in range(number):
        rng = numbers(seed)
        mutate = EVERY_KIND[seed % len(EVERY_KIND)]
        broken = mutate(rng, files)
        start = time.perf_counter()
        try:
            model = load(broken, folder)
        except NTKFusionError:
            outcomes["refused"] += 1
        else:
            check(model, original)
            outcomes["unchanged files" if broken == files else "equal"] += 1
        slowest = max(slowest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{number} mutations: {dict(outcomes)}; slowest {slowest:.2f} s, {grown:.0f} MB more at the peak")
    assert grown < 300
    assert outcomes["refused"] > number / 2
    return outcomes


def test_some_mutations(written, tmp_path):
    run(written, tmp_path / "broken", 28, assert_equal)


@pytest.mark.slow
def test_many_mutations(written, tmp_path):
    run(written, tmp_path / "broken", 560, assert_equal)


@pytest.mark.slow
def test_files_without_digests(folder, tmp_path):
    """Nobody can notice other numbers in a foreign file; nothing else may get through."""

    def check(model, original):
        assert model.config.mlp_layouts == ()
        if model.config == original.config:
            assert named(model).keys() == named(original).keys()
        assert all(np.isfinite(array).all() for array in named(model).values())

    run(folder.write(), tmp_path / "broken", 280, check)


@pytest.mark.parametrize("name", ["encoder.layer.0.intermediate.dense.weight", "embeddings.word_embeddings.weight"])
def test_defects_of_foreign_files(folder, name):
    """What a foreign file's own header and numbers give away."""
    original = load_model(folder.write())
    tensors = load_file(folder.weights)
    for changed in (
        {key: array for key, array in tensors.items() if key != name},
        {**tensors, name: np.ascontiguousarray(tensors[name].T)},
        {**tensors, name: np.full_like(tensors[name], np.nan)},
        {**tensors, name: tensors[name].astype(np.int32)},
        {**tensors, name: tensors[name][:-1]},
        {**tensors, f"{name}.more": tensors[name]},
    ):
        save_file(changed, folder.weights)
        with pytest.raises(NTKFusionError):
            load_model(folder.path)
    save_file(tensors, folder.weights)
    assert_equal(load_model(folder.path), original)
