"""Loops over single numbers, compiled to machine code."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class compiled(Generic[P, R]):
    """The same function by Numba, for what would else be dozens of calls of NumPy.

    It is compiled, or what was compiled before is read, when it is first called: a process that
    never calls it does not even import Numba. Arithmetic is in the types of what is given, in the
    order in which it stands there, as in C without fast math, and no index is checked. Machine code
    is kept beside the source, or in the user's cache, as long as the source's file stays as it is;
    constants of other modules are part of it: who changes one deletes `__pycache__`.
    """

    def __init__(self, function: Callable[P, R], in_any_order: bool = False) -> None:
        update_wrapper(self, function)
        self._function = function
        # Of LLVM's fast math what changes the roundings of sums, and not what NaN and infinity are.
        self._fast_math: bool | set[str] = {"reassoc", "contract"} if in_any_order else False
        self._call: Callable[P, R] | None = None

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        if self._call is None:
            self._call = self._machine_code(keep=True)
        try:
            return self._call(*arguments, **named)
        except Exception as error:  # a full disk; a file that was cut short
            cut_short = isinstance(error, EOFError) or type(error).__name__ == "UnpicklingError"
            if not cut_short and not isinstance(error, OSError):
                raise
            self._call = self._machine_code(keep=False)
            return self._call(*arguments, **named)

    def _machine_code(self, keep: bool) -> Callable[P, R]:
        import numba

        try:
            dispatcher = numba.njit(cache=keep, fastmath=self._fast_math)(self._function)
        except RuntimeError:  # nowhere to keep it
            dispatcher = numba.njit(fastmath=self._fast_math)(self._function)
        return cast(Callable[P, R], dispatcher)


def compiled_in_any_order(function: Callable[P, R]) -> compiled[P, R]:
    """The same for sums whose terms may be added in any order: on one machine it is one order."""
    return compiled(function, in_any_order=True)


def load_compiler() -> None:
    """Takes half a second, which a process may have to spare before it calls anything compiled."""
    _nothing()


@compiled
def _nothing() -> None:
    pass
