"""The benchmark of kernels: it runs, who needs too much is a row, and operations are counted as they are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from experiments.benchmarks.kernels.growth import fitted_exponent
from experiments.benchmarks.kernels.network import xla_count
from experiments.benchmarks.kernels.operations import CountedSizes, contraction_operations, network_operations
from experiments.benchmarks.kernels.options import BlockSizes, GrowthSizes, KernelsOptions, NetworkSizes
from experiments.benchmarks.kernels.outcome import Entrant, Limits
from experiments.benchmarks.kernels.race import race
from experiments.benchmarks.kernels.run import main
from ntkfusion.errors import OutputExistsError


def tiny_options(**changes):
    network = NetworkSizes(1, 16, 2, 32, 30, 2, 4, 6, "4GiB", "2GiB", (2,), ("jacobian-contraction",))
    values = {
        "block": BlockSizes(d=16, m=32, o=16, n=4, tokens=64, batch_sizes=(0,)),
        "network": network,
        "growth": GrowthSizes((8, 16), (16, 32), 8, network, (2, 4), (4, 6), (1, 2)),
        "repeats": 1,
        "memory_limit": "4GiB",
    }
    return KernelsOptions(**values | changes)


@pytest.mark.wide
def test_kernel_benchmark_runs(tmp_path, capsys):
    """One section; the slow test below runs all."""
    options = tiny_options(sections=("tokens",), out=tmp_path / "out")
    main(options)
    assert "Traced block kernel of N=64 tokens, d=16, m=32, o=16" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for outcome in results["sections"]["tokens"]["race"]:
        assert outcome["status"] == "ok"
        assert 0 < outcome["baseline"] < outcome["peak"] < 4 * 2**30
        assert 0 < outcome["median"] < outcome["first"]
    with pytest.raises(OutputExistsError, match="--overwrite"):
        main(options)


@pytest.mark.slow
def test_kernel_benchmark_fills_every_table(tmp_path, capsys):
    main(tiny_options(out=tmp_path / "out"))
    sections = json.loads((tmp_path / "out" / "results.json").read_text())["sections"]
    assert list(sections) == ["block", "tokens", "network", "growth"]
    network = sections["network"]
    outcomes = [*sections["block"]["race"], *network["ours"], *network["peers"]]
    outcomes += [outcome for curve in sections["growth"]["curves"] for outcome in curve["outcomes"]]
    assert [outcome for outcome in outcomes if outcome["status"] != "ok"] == []
    assert len(network["peers"]) == 3
    printed = capsys.readouterr().out
    (block,) = re.findall(r"Relative difference of the kernels: (\S+)\.", printed)
    peers = re.findall(r"^ (?:jacrev|neural-tangents).* (\d\.\de-\d\d) *$", printed, re.MULTILINE)
    assert len(peers) == 3
    assert max(map(float, [block, *peers])) <= 1e-5
    assert (tmp_path / "out" / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.wide
def test_who_needs_too_much_is_a_row_and_not_a_crash():
    """One limit for all: the closed form stays below, gigabytes of Jacobians do not; nobody finishes in a hurry."""
    problem = {"d": 128, "m": 256, "o": 256, "n": 32, "seed": 0}
    how = {"implementation": "jacobian-contraction", "batch_size": None}
    ours = Entrant("ours", {"contestant": "block", "kind": "sgd", **problem})
    theirs = Entrant("theirs", {"contestant": "block-reference", **how, **problem})
    broken = Entrant("broken", {"contestant": "block", "kind": "adam", **problem})
    outcomes = race([theirs, ours, broken], 1, Limits(600 * 2**20, 120))
    assert [outcome.status for outcome in outcomes] == ["memory", "ok", "error"]
    assert outcomes[0].reason.startswith("does not fit (needed > ")
    assert len(outcomes[1].seconds) == 1
    assert "unknown kernel kind 'adam'" in outcomes[2].reason
    (late,) = race([ours], 1, Limits(2**34, 0.001))
    assert (late.status, late.reason) == ("time", "over 0.001 s")


def test_operations_of_a_network_counted_by_hand():
    # 3 examples of 2 tokens, 1 layer, d=2, m=3, 1 logit. Encoder matrices: 4·2·2 + 2·2·3 = 28 weights; head: 4 + 2
    products = 2 * 3 * (2 * 28 + 6)
    attention = 3 * (2 * 2 * 2 * 2) * 2  # two products of 2 × 2 tokens, each 2·T²·d
    # gradients are cheapest: per weight 3·2 positions to form them, 6 pairs of rows to multiply
    encoder = 28 * (2 * 3 * 2 + 2 * 6)
    head = 2 * 6 * (2 + 2) + 2 * 6 * (2 + 1)  # one position: 6 pairs, i + o each
    found = network_operations(CountedSizes(1, 2, 3, 1, 3, 2), "sgd")
    assert (found.forward, found.backward) == (products + attention, products + 2 * attention)
    assert found.contraction == encoder + head
    # signs: not symmetric, 9 pairs; of the head's two matrices the second is cheaper by gradients, 12 + 36 < 2·9·3
    assert network_operations(CountedSizes(1, 2, 3, 1, 3, 2), "sign").contraction == 28 * (12 + 18) + 2 * 9 * 4 + 48
    # wide matrices: a pair of positions costs i + C²·o; with several outputs it is cheaper to sum over one side first
    assert contraction_operations(1, 1, 2, 100, 100, "sgd") == 2 * 4 * (100 + 100)
    assert contraction_operations(1, 3, 2, 100, 100, "sgd") == 2 * (4 * (100 + 300) + 2 * 900)


def test_operations_agree_with_xlas_count():
    ours = network_operations(CountedSizes(2, 256, 1024, 2, 4, 32), "sgd")
    theirs = xla_count(NetworkSizes(layers=2, d=256, heads=4, m=1024, vocab=50, n=4, t=32))
    assert 1 <= theirs / (ours.forward + ours.backward) <= 1.05


def test_exponents_are_those_of_the_larger_half():
    x = np.array([1.0, 2, 4, 8, 16])
    assert fitted_exponent(x, 3 * x**1.5) == pytest.approx(1.5)
    assert fitted_exponent(x[::-1], np.where(x > 2, 7 * x**2, 1000.0)[::-1]) == pytest.approx(2)
    assert np.isnan(fitted_exponent(x[:1], x[:1]))
    assert np.isnan(fitted_exponent(x, -x))
