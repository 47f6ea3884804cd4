"""Compiled functions: the same results, wherever their machine code can be kept."""

import numba
import numpy as np
import pytest

from common.compiled import compiled


def double(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += 2 * value
    return total


def test_a_compiled_function_gives_what_it_gave() -> None:
    assert compiled(double)(np.arange(4.0)) == double(np.arange(4.0)) == 12.0


def test_it_is_compiled_even_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refusing(**options: bool) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", refusing)
    assert compiled(double)(np.arange(4.0)) == 12.0
