"""The folder of a run: made, kept to one run at a time, written to only as a whole."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from common.config import Config
from common.errors import ConfigError


def make_run_dir(config: Config, started: float) -> Path:
    """The run's folder, made if need be; absolute. started: seconds since the epoch."""
    if config.run_dir:
        run_dir = Path(config.run_dir)
    else:
        game = config.env.split(":")[-1].replace("/", "-")
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started))
        run_dir = Path("runs") / f"{game}-{config.preset}-{config.seed}-{stamp}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Cannot make the run folder {run_dir}: {error.strerror}; choose another --run-dir."
        ) from None
    return run_dir.resolve()


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep every other run out of the folder. Raises ConfigError when one is in it."""
    try:
        file = (run_dir / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the run folder {run_dir}: {error.strerror}; choose another --run-dir."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir} is in use by another run: choose another --run-dir, or end that run."
            ) from None
        yield


def has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("step-*"))


def require_unused(run_dir: Path) -> None:
    """Raises ConfigError when a run has left its records here."""
    if has_checkpoint(run_dir):
        raise ConfigError(
            f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose "
            "another --run-dir."
        )
    if (run_dir / "metrics.csv").exists():
        raise ConfigError(
            f"{run_dir} holds a run that ended before its first checkpoint: remove the folder, or "
            "choose another --run-dir."
        )


def replace_file(path: Path, text: str) -> None:
    """Write a whole file or nothing: whoever reads `path` sees the old text or the new."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
