"""NTK fusion and improvements on top of other methods: what each step must and must not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.matching.constants import match_constants
from ntkfusion.compression.matching.refit import refit_output
from ntkfusion.compression.matching.tuning import Tuning, tune
from ntkfusion.compression.methods.active_neurons import ActiveNeurons
from ntkfusion.compression.methods.improved import Matched, Refitted
from ntkfusion.compression.methods.kronecker import Kronecker
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.compression.methods.ntk_fusion import NTKFusion
from ntkfusion.compression.methods.svd import SVD
from ntkfusion.compression.registry import METHODS, build_method
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.distance.kernel_distance import relative_error
from tests.helpers.blocks import dense_block, gated_block, mixture_block, normal, relative

D, M = 6, 24
SHORT = Tuning(steps=40, rate=1e-2, batch=64, kernel_tokens=16, kernel_sets=2)


@pytest.fixture(scope="module")
def block():
    return dense_block(D, M, D, scale=0.5)


@pytest.fixture(scope="module")
def tokens():
    return normal(1, 200, D)


@pytest.fixture(scope="module")
def workspace(tokens):
    return Workspace(0, [tokens])


def compress(method, block, workspace):
    return method.compress([block], workspace).blocks[0]


def test_refit_is_the_least_squares_solution_where_tokens_abound(x64):
    block, x = dense_block(D, M, D), normal(1, 400, D)
    small = compress(ActiveNeurons(0.5), block, Workspace(0, [x]))
    refitted, details = refit_output(small, block, x)
    hidden = jnp.concatenate(
        [jax.nn.gelu(x @ small.w1 + small.b1[None], approximate=False), jnp.ones((400, 1))], axis=1
    )
    best, *_ = np.linalg.lstsq(np.asarray(hidden), np.asarray(block(x)), rcond=None)
    assert relative_error(refitted(x), block(x)) == pytest.approx(relative_error(hidden @ best, block(x)), rel=1e-3)
    assert details["refit_left_out_error"] > 0
    np.testing.assert_array_equal(refitted.w1, small.w1)


def test_refit_of_a_factorized_block_changes_its_last_factor_only(block, tokens, workspace):
    small = compress(SVD(0.9), block, workspace)
    refitted, _ = refit_output(small, block, tokens)
    for name, array in small.parameters().items():
        assert bool(jnp.all(array == refitted.parameters()[name])) == (name not in ("right2", "b2"))
    assert relative_error(refitted(tokens), block(tokens)) < relative_error(small(tokens), block(tokens))


@pytest.mark.wide
def test_tuning_brings_output_and_kernels_closer_on_tokens_it_has_not_seen(block, tokens, workspace):
    start, _ = refit_output(compress(ActiveNeurons(0.5), block, workspace), block, tokens)
    tuned, details = tune(start, block, tokens, jax.random.key(0), SHORT)
    assert details["tuning_loss"] < details["tuning_loss_before"]
    other = normal(2, 60, D)

    def objective(student):
        """What tuning minimises, on other tokens, with the constants matched afresh."""
        matched = {kind: match_constants(student, block, tokens[:64], target=kind).block for kind in ("sgd", "sign")}
        kernels = [
            relative_error(block_kernel(new, other, kind=kind), block_kernel(block, other, kind=kind))
            for kind, new in matched.items()
        ]
        return relative_error(student(other), block(other)) ** 2 + SHORT.kernel_weight * sum(e**2 for e in kernels)

    assert objective(tuned) < 0.9 * objective(start)


@pytest.mark.slow
def test_tuning_that_makes_things_worse_is_not_kept(block, tokens, workspace):
    start, _ = refit_output(compress(ActiveNeurons(0.5), block, workspace), block, tokens)
    wild = Tuning(steps=40, rate=100.0, batch=64, kernel_tokens=16, kernel_sets=2)
    tuned, details = tune(start, block, tokens, jax.random.key(0), wild)
    jax.tree.map(np.testing.assert_array_equal, tuned, start.fold())
    assert details["tuning_loss"] == details["tuning_loss_before"]


@pytest.mark.slow
def test_tuning_wakes_neurons_that_are_silent_on_all_tokens(block, tokens):
    """There is no least-squares solution for their constants, which must not end in NaN."""
    silent = block.replace(w2=0 * block.w2)
    tuned, details = tune(silent, block, tokens, jax.random.key(0), SHORT)
    assert details["tuning_loss"] < details["tuning_loss_before"] < np.inf
    assert relative_error(tuned(tokens), block(tokens)) < relative_error(silent(tokens), block(tokens))


@pytest.mark.parametrize(
    ("start", "shape", "message"),
    [
        (gated_block(D, M, D), (20, D), "dense and factorised blocks; got a GatedBlock"),
        (dense_block(D, M, D), (20, D - 1), "row of 6 numbers"),
        (dense_block(D, M, D), (3, D), "at least 4 calibration inputs, got 3"),
    ],
)
def test_what_cannot_be_tuned_is_refused(block, start, shape, message):
    with pytest.raises(InputError, match=message):
        # not of the kinds in the signature, which only tests check
        tune.__wrapped__(start, block, normal(1, *shape), jax.random.key(0), SHORT)


@pytest.mark.wide
def test_the_target_changes_constants_and_kernels_but_not_the_function(block, tokens, workspace):
    blocks = {t: compress(NTKFusion(0.5, target=t, tuning=SHORT), block, workspace) for t in ("sgd", "sign", "both")}
    for kind, other in (("sgd", "sign"), ("sign", "sgd")):
        reference = block_kernel(block, tokens[:50], kind=kind)
        errors = {t: relative_error(block_kernel(b, tokens[:50], kind=kind), reference) for t, b in blocks.items()}
        assert errors[kind] < errors["both"] < errors[other]
    assert relative(blocks["sgd"](tokens), blocks["sign"](tokens)) < 1e-4
    assert relative(blocks["sgd"].fold().w2, blocks["both"].fold().w2) < 1e-4


@pytest.mark.wide
def test_one_student_serves_all_targets(block, tokens, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "ntkfusion.compression.methods.ntk_fusion.tune", lambda *arguments: calls.append(1) or tune(*arguments)
    )
    workspace = Workspace(0, [tokens])
    for target in ("sgd", "sign"):
        compress(NTKFusion(0.5, target=target, tuning=SHORT), block, workspace)
    assert len(calls) == 1


def test_progress_is_reported(block, tokens):
    heard = []
    workspace = Workspace(0, [tokens], progress=lambda what, fraction: heard.append((what, fraction)))
    compress(NTKFusion(0.5, tuning=SHORT), block, workspace)
    assert heard[-1] == ("tuning block 1", 1.0)
    assert [fraction for _, fraction in heard] == sorted(fraction for _, fraction in heard)


@pytest.mark.slow
def test_improvements_keep_the_size_and_follow_the_name(block, tokens, workspace):
    method = build_method("mlp-fusion-v2+refit+sign", 0.5)
    assert method == Matched(method=Refitted(method=MLPFusion(0.5, variant="v2")), target="sign")
    compressed = method.compress([block], workspace)
    plain = build_method("mlp-fusion-v2", 0.5).compress([block], workspace)
    assert compressed.reports[0].parameters == plain.reports[0].parameters == compressed.blocks[0].num_parameters
    assert compressed.reports[0].details.keys() > plain.reports[0].details.keys()
    assert relative_error(compressed.blocks[0](tokens), block(tokens)) < relative_error(
        plain.blocks[0](tokens), block(tokens)
    )


@pytest.mark.slow
def test_a_coded_block_with_constants_is_dense_and_counts_as_dense(block, tokens, workspace):
    plain = Kronecker(0.5).compress([block], workspace)
    matched = Matched(method=Kronecker(0.5)).compress([block], workspace)
    assert matched.reports[0].parameters == matched.blocks[0].num_parameters == block.num_parameters
    assert relative(matched.blocks[0](tokens), plain.blocks[0](tokens)) < 1e-4


@pytest.mark.slow
def test_experts_are_improved_one_by_one():
    mixture = mixture_block(D, 8, D, experts=2)
    x = normal(1, 120, D)
    improved = Matched(method=Refitted(method=ActiveNeurons(0.5))).compress([mixture], Workspace(0, [x]))
    plain = ActiveNeurons(0.5).compress([mixture], Workspace(0, [x]))
    assert improved.blocks[0].router is mixture.router
    errors = [relative_error(found.blocks[0](x), mixture(x)) for found in (improved, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NTKFusion(sgd_share=2.0), "from 0 to 1; got 2.0"),
        (lambda: NTKFusion(matching_tokens=0), "at least 1, got 0"),
        (lambda: Tuning(batch=0), "batch must be at least 1, got 0"),
        (lambda: Tuning(rate=-1.0), "rate must be a number of at least 0, got -1.0"),
        (lambda: Tuning(validation=1.0), "between 0 and 1; got 1.0"),
        (lambda: Matched(tokens=0), "tokens at least 1; got 0.5, 0"),
        (lambda: build_method("svd+shrink", 0.5), r"unknown improvement 'shrink' of svd; known: \+refit, \+sgd"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magnitude-pruning+refit", "refitting needs dense output weights; got a MaskedBlock"),
        ("kronecker+refit", "refitting needs dense output weights; got a CodedBlock"),
        ("magnitude-pruning+refit+sgd", "refitting needs dense output weights; got a MaskedBlock"),
    ],
)
def test_blocks_that_cannot_be_improved_are_refused_before_any_work(block, name, message):
    with pytest.raises(InputError, match=message):
        build_method(name, 0.5).check([block])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svd+refit+sgd", "kronecker+sign", "mlp-fusion+refit"])
def test_the_kind_of_improved_blocks_is_known_in_advance(block, workspace, name):
    method = build_method(name, 0.75)
    assert type(compress(method, block, workspace)) is method.makes()


def test_own_methods_are_registered():
    assert [METHODS[name].build(0.25).target for name in ("ntk-fusion", "ntk-fusion-sign", "ntk-fusion-both")] == [
        "sgd",
        "sign",
        "both",
    ]
