"""The benchmark of k-means runs."""

from __future__ import annotations

import pytest

from experiments.benchmarks.clustering.run import ClusteringOptions, main


@pytest.mark.wide
def test_clustering_benchmark_runs(capsys):
    main(ClusteringOptions(sections=("layers",), layers=(0,), width=0.01, restarts=1, repeats=1))
    out = capsys.readouterr().out
    assert "MiniLM, layer 0" in out
    assert "1 restarts, a cluster per 100 neurons" in out
