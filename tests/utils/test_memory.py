"""Sizes of memory as people write them, and what is refused."""

from __future__ import annotations

import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.estimate import check_result
from ntkfusion.utils.memory import available_memory, memory_limit, parse_size, show_size


@pytest.mark.parametrize(("text", "size"), [("8GiB", 2**33), ("500 mb", 500_000_000), (7, 7), ("0.5KiB", 512)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "", "0", "-1GiB", "1.2.3", "3 parsecs", "9" * 400 + "TB", "0.1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="a memory limit is a positive size such as 8GiB or 500MB"):
        memory_limit(text)


def test_the_default_is_less_than_there_is():
    assert 0 < memory_limit(None) < 0.9 * available_memory()
    assert show_size(2**40 * 3) == "3.0 TiB"


def test_what_would_fit_is_never_nothing():
    check_result(10, 10, 1, "rows")
    with pytest.raises(InputError, match="alone takes 11 B, the limit is 10 B: ask for 3 rows or fewer, or raise"):
        check_result(11, 10, 3, "rows")
    with pytest.raises(InputError, match="not even one of the rows fits: raise memory_limit"):
        check_result(11, 10, 0, "rows")
