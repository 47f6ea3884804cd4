"""The benchmarks that need a GPU, measured until the time is up."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import as_markdown, from_json
from common.lifeline import die_with_parent
from tuning.trials import LAST_LINES, LAUNCH

# The whole system first: should it fail it does so soon. Compiling comes last within row 14.
ROWS = ("16", "15", "14")
INTERRUPT_SECONDS = 40.0  # for a row that is cut short to end its processes


def measure(rows: Sequence[str], out: Path, seconds: float, environment: dict[str, str]) -> str:
    """`launch.py bench ROWS` into out/bench.json, line by line. -> what went wrong, or ''.

    It is interrupted in time to have ended after so many seconds.
    """
    log = out / "bench.log"
    command = [sys.executable, str(LAUNCH), "bench", *rows, "--json", str(out / "bench.json")]
    with log.open("w") as console:
        process = subprocess.Popen(
            command,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # it and its workers can be ended together
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        trouble = ended(process, seconds)
    return "\n".join([trouble, *log.read_text().splitlines()[-LAST_LINES:]]) if trouble else ""


def ended(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """After so many seconds at most. -> what went wrong, or ''."""
    try:
        code = process.wait(max(0.0, seconds - INTERRUPT_SECONDS))
        return f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERRUPT_SECONDS)
        return f"interrupted: {seconds:.0f} s are too few for all of it"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(out: Path) -> str:
    """Of the rows that were measured."""
    path = out / "bench.json"
    if not path.exists():
        return "No row was measured."
    try:
        return as_markdown(from_json(path.read_text()))
    except ValueError:
        return f"{path.name} is not whole: it ended, or the disk was full, while it was written."
