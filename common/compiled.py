"""Loops over single numbers, compiled to machine code when they are first called."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, by Numba: for what would else be dozens of calls of NumPy.

    Arithmetic is in the types of what it is given, in the order in which it stands there, as in C
    without fast math. Machine code is kept beside the source (or in the user's cache, where that
    cannot be written to), so only the first process ever waits for the compiler.
    """
    try:
        return cast(Callable[P, R], numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # neither can be written to
        return cast(Callable[P, R], numba.njit(nogil=True)(function))
