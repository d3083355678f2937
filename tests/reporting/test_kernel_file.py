"""Kernel files come back as they were written, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.reporting.kernel_file import load_kernel_file, save_kernel_file, traced
from tests.helpers.kernel_files import kernel_file


def test_round_trip_without_pickle(tmp_path):
    groups = {"w1": np.full((2, 2), 0.25, np.float32), "layer_0/ü": np.ones((2, 2))}
    written = kernel_file(groups=groups, labels=("日本", '"quoted", '))
    save_kernel_file(written, tmp_path / "k.npz")
    read = load_kernel_file(tmp_path / "k.npz")
    assert (read.sentences, read.labels, read.conditions) == (written.sentences, written.labels, written.conditions)
    assert read.kernel.dtype == np.float32
    np.testing.assert_array_equal(read.kernel, written.kernel)
    assert list(read.groups) == list(groups)
    for name, part in groups.items():
        np.testing.assert_array_equal(read.groups[name], part)
    with np.load(tmp_path / "k.npz", allow_pickle=False) as members:
        assert "group/w1" in members.files
        assert not any(members[name].dtype.hasobject for name in members.files)


def test_what_is_no_kernel_file_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", kernel=np.eye(2))
    np.save(tmp_path / "array.npy", np.eye(2))
    whole = tmp_path / "whole.npz"
    save_kernel_file(kernel_file(), whole)
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:500])
    for name in ("text.npz", "empty.npz", "other.npz", "array.npy", "half.npz"):
        with pytest.raises(InputError, match="is not a kernel file"):
            load_kernel_file(tmp_path / name)
    for name in ("missing.npz", "."):
        with pytest.raises(InputError, match="cannot be read"):
            load_kernel_file(tmp_path / name)


def test_traced_is_the_mean_over_outputs():
    kernel = np.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(traced(kernel), (kernel[..., 0, 0] + kernel[..., 1, 1]) / 2)
    np.testing.assert_array_equal(traced(np.eye(3)), np.eye(3))
