"""Results of before the methods' field was called keep_ratio are found again: digests and names as they were then.

`stored_keys.json` was written by the code of commit c78def9, with the options below.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.bound_tightness.run import TightnessOptions, stored_key
from experiments.common.store import Job, ResultStore, stored_repr
from experiments.kernel_distance.bench import Bench
from experiments.kernel_distance.options import DistanceOptions
from experiments.kernel_distance.run import SECTIONS
from experiments.kernel_vs_finetuning.lab import SLOW, TaskLab
from experiments.kernel_vs_finetuning.options import FinetuningOptions
from experiments.kernel_vs_finetuning.runs import cases, curve_cases, curve_job, job
from ntkfusion.compression.registry import build_method
from ntkfusion.errors import InputError, OutputBusyError, OutputExistsError
from tests.helpers.lock_holder import held_by_another

STORED = json.loads((Path(__file__).parents[1] / "stored_keys.json").read_text(encoding="utf-8"))


def test_methods_are_described_with_their_old_field():
    assert stored_repr(build_method("svd", 0.25)) == "SVD(width=0.25, split='balanced')"
    assert stored_repr(("minilm", build_method("svd+refit", 0.5))) == (
        "('minilm', Refitted(width=0.5, method=SVD(width=0.5, split='balanced')))"
    )


def test_kernel_distances_are_found_again(tmp_path, monkeypatch):
    monkeypatch.delenv("NTKFUSION_DATA_DIR", raising=False)
    found = {}

    def note_jobs(self, title, jobs, do):
        found.update({f"{job.section}/{job.name}": job.digest for job in jobs})
        raise InputError("noted")

    monkeypatch.setattr(Bench, "run", note_jobs)
    bench = Bench(DistanceOptions(seeds=(0,), widths=(0.25,), out=tmp_path))
    for section in SECTIONS.values():
        with pytest.raises(InputError, match="noted"):
            section(bench)
    assert STORED["kernel_distance"].items() <= found.items()


def test_fine_tuned_runs_and_kept_models_are_found_again(small_sst2):
    options = FinetuningOptions(tasks=("sst2",), seeds=(0,), widths=(0.25,))
    lab = TaskLab(options, "sst2")
    jobs = [job(options, lab, case) for case in cases(options)]
    jobs += [curve_job(options, lab, case) for case in curve_cases(options)]
    assert {f"{job.section}/{job.name}": job.digest for job in jobs} == STORED["kernel_vs_finetuning"]
    kept = {method: f"{method}-0.25-seed0-{lab.key(method, 0.25)}" for method in SLOW}
    assert kept == STORED["kept_models"]


def test_measured_bounds_are_found_again():
    (key,) = STORED["bound_tightness"].values()
    assert stored_key(TightnessOptions(), json.loads(key)["text"]) == key


def test_two_experiments_never_share_a_store(tmp_path):
    with held_by_another(tmp_path / "out") as process, pytest.raises(OutputBusyError, match=f"process {process.pid} "):
        ResultStore(tmp_path / "out", overwrite=True)
    store = ResultStore(tmp_path / "out", overwrite=False)
    store.put(Job("a", "b", {}), {"error": 1.0})
    del store
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stored_file_of_before_is_read(tmp_path):
    """As it was written then, word for word."""
    settings = {"seed": 0, "options": "RandomNeurons(width=0.25, rescale=True)"}
    written = {"digest": "26341b6a649ef5a4", "settings": settings, "result": {"kept": 0.25, "error": None}}
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "some.json").write_text(json.dumps(written, indent=1) + "\n")
    (tmp_path / ".ntkfusion").touch()
    store = ResultStore(tmp_path, overwrite=False)
    now = Job("blocks", "some", {"seed": 0, "options": stored_repr(build_method("random-neurons", 0.25))})
    assert store.find(now) == {"kept": 0.25, "error": None}
    with pytest.raises(OutputExistsError, match="other settings"):
        store.find(Job("blocks", "some", {"seed": 1}))
    (tmp_path / "blocks" / "some.json").write_text("[]")
    with pytest.raises(InputError, match="remove it"):
        store.find(now)
