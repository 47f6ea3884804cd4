"""A process that measures sides when asked, and sleeps in between.

`serve("MODULE:FUNCTION", '{"option": 1}')` calls the function once; it returns the sides by name.
Their names are the first line on standard output; then every line
`go SECONDS NAME` on standard input is answered by that side's figure, in JSON. End of input ends
it. So any two sides can take turns, each in the environment and with the threads that it needs.
"""

import importlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from benchmarks.measure import Form, NotMeasured, Row, Side, alternate

ROOT = Path(__file__).parent.parent
# Our own modules come first, but not from where Volley is installed beside all that it needs: the
# peers would find that before what is in their own environment.
PLACE = 0 if (ROOT / "pyproject.toml").exists() else 1 << 16
SERVE = """
import sys
_, root, place, *words = sys.argv
sys.path.insert(int(place), root)
from benchmarks.worker import serve
serve(*words)
"""
PATIENCE_SECONDS = 300.0  # for imports, compilation and a busy machine, on top of what is asked


class Worker:
    """The process, and its sides as functions of this one.

    maker: `module:function`; python: whose environment; environment: variables to add, the number
    of OpenMP threads for example. Raises NotMeasured where it dies, with the last it said.
    """

    def __init__(
        self,
        maker: str,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by __exit__
        self._process = subprocess.Popen(
            # -u: what libraries have printed must not come after its last words.
            [python, "-P", "-u", "-c", SERVE, str(ROOT), str(PLACE), maker, json.dumps(options)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            names = self.answer(0.0)
        except NotMeasured:
            self.__exit__()
            raise
        self.sides: dict[str, Side] = {name: partial(self._measure, name) for name in names}

    def begin(self, name: str, seconds: float) -> None:
        """Ask, and come back for the `answer` later."""
        assert self._process.stdin
        self._process.stdin.write(f"go {seconds} {name}\n")
        self._process.stdin.flush()

    def answer(self, seconds: float) -> Any:
        assert self._process.stdout
        if select.select([self._process.stdout], [], [], seconds + PATIENCE_SECONDS)[0]:
            if line := self._process.stdout.readline():
                return json.loads(line)
            raise NotMeasured(self._last_words())
        self._process.kill()
        raise NotMeasured(f"no answer in {seconds + PATIENCE_SECONDS:.0f} s")

    def _measure(self, name: str, seconds: float) -> Any:
        self.begin(name, seconds)
        return self.answer(seconds)

    def _last_words(self) -> str:
        self._errors.seek(0)
        return the_error_in(self._errors.read()) or "its process ended without a word"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def the_error_in(said: str) -> str:
    """The line that names it, of a process that has ended; all it said last goes to the console.

    It need not be the last line: torch adds advice to its errors.
    """
    lines = said.strip().splitlines()
    print("\n".join(lines[-40:]), file=sys.stderr, flush=True)
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (named or lines or [""])[-1]


def versus(
    row: Row, ours: Side, others: Mapping[str, Callable[[], Worker]], form: Form
) -> list[Row]:
    """Our side against the only side of each of the others, all taking turns. -> a row for each.

    row: what they have in common; others: how each is started. One that cannot be measured gives
    a row that says why.
    """
    sides: dict[str, Side] = {}
    problems: dict[str, str] = {}
    with ExitStack() as stack:
        for name, start in others.items():
            try:
                (sides[name],) = stack.enter_context(start()).sides.values()
            except NotMeasured as why:
                problems[name] = str(why)
        seen = alternate({"ours": ours, **sides}, form.rounds, form.seconds)
    return [
        replace(row, against=name, note=problems[name])
        if name in problems
        else replace(row, against=name, figures=seen["ours"], references=seen[name])
        for name in others
    ]


def serve(maker: str, options: str) -> None:
    """The worker's own side. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, function = maker.partition(":")
    sides: dict[str, Side] = getattr(importlib.import_module(module), function)(
        **json.loads(options)
    )
    print(json.dumps(list(sides)), file=answers)
    for line in sys.stdin:
        _, seconds, name = line.rstrip("\n").split(" ", 2)
        print(json.dumps(sides[name](float(seconds))), file=answers)
