"""Spectra of matrices whose spectra are known."""

from __future__ import annotations

import numpy as np
import pytest

from ntkfusion.commands.kernel.run import spectra_of
from tests.helpers.kernel_files import kernel_file


def test_sgd_has_eigenvalues_and_sign_has_singular_values():
    kernel = np.array([[3.0, 4.0], [0.0, 5.0]])
    symmetric = kernel @ kernel.T
    found = spectra_of(kernel_file(symmetric, {"half": symmetric / 4, "zero": 0 * symmetric}))
    np.testing.assert_allclose(found["all"].values, [45.0, 5.0])
    np.testing.assert_allclose(spectra_of(kernel_file(kernel, kind="sign"))["all"].values, np.sqrt([45.0, 5.0]))
    np.testing.assert_allclose(found["half"].values, np.array([45.0, 5.0]) / 4)
    assert (found["all"].share, found["half"].share, found["zero"].share) == (1.0, 0.25, 0.0)
    assert (found["zero"].effective_rank, len(found["zero"].significant)) == (0.0, 0)


def test_effective_rank_counts_equal_directions():
    found = spectra_of(kernel_file(np.diag([2.0, 2.0, 2.0, 1e-9])))["all"]
    assert found.effective_rank == pytest.approx(3.0, abs=1e-5)
    assert len(found.significant) == 3


def test_a_network_kernel_is_a_matrix_of_examples_and_outputs():
    """K[n, m, c, d] = ⟨J[n, c], J[m, d]⟩ has the squared singular values of J, stacked, as eigenvalues."""
    jacobian = np.random.default_rng(0).normal(size=(3, 2, 9))
    kernel = np.einsum("ncp,mdp->nmcd", jacobian, jacobian)
    found = spectra_of(kernel_file(kernel, scope="network", labels=("a", "b", "c")))["all"]
    expected = np.linalg.svd(jacobian.reshape(6, 9), compute_uv=False) ** 2
    np.testing.assert_allclose(found.values, expected, rtol=1e-10)
