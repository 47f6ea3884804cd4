"""The folder of a run: made, kept to one run at a time; small files replaced as a whole."""

import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.config import Config, is_utf8
from common.errors import ConfigError

WRITTEN_ANEW = ("config.json", "best.safetensors", "last.safetensors", "result.json")  # by a run


def make_run_dir(config: Config) -> Path:
    """The run's folder, made if need be; absolute."""
    game = config.env.split(":")[-1].replace("/", "-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run_dir = Path(config.run_dir or f"runs/{game}-{config.preset}-{config.seed}-{stamp}")
    _require_utf8(run_dir.absolute(), "choose another --run-dir")
    first = run_dir
    try:
        for number in itertools.count(2):
            try:
                run_dir.mkdir(parents=True, exist_ok=bool(config.run_dir))
                break
            except FileExistsError:  # another run of this very second
                if config.run_dir:
                    raise
                run_dir = first.with_name(f"{first.name}-{number}")
    except OSError as error:
        raise ConfigError(
            f"Cannot make the run folder {run_dir}: {error.strerror}; choose another --run-dir."
        ) from None
    return run_dir.resolve()


def _require_utf8(run_dir: Path, remedy: str) -> None:
    if not is_utf8(str(run_dir)):
        raise ConfigError(f"The run folder's path, {str(run_dir)!r}, is not UTF-8: {remedy}.")


@contextlib.contextmanager
def locked(run_dir: Path, *, resume: bool) -> Iterator[None]:
    """Keep every other run out of the folder. Raises ConfigError when one is in it.

    resume: the folder is given, so that no message suggests another.
    """
    _require_utf8(run_dir, "rename it")
    try:
        file = (run_dir / "lock").open("w")
    except OSError as error:
        remedy = "make it writable" if resume else "choose another --run-dir"
        raise ConfigError(
            f"Cannot write to the run folder {run_dir}: {error.strerror}; {remedy}."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "end it first" if resume else "choose another --run-dir, or end that run"
            raise ConfigError(f"{run_dir} is in use by another run: {remedy}.") from None
        except OSError as error:
            remedy = "copy it to a local disk" if resume else "choose a --run-dir on a local disk"
            raise ConfigError(
                f"Cannot lock the run folder {run_dir}: {error.strerror}; {remedy}."
            ) from None
        yield


def has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("step-*"))


def require_unused(run_dir: Path) -> None:
    """Raises ConfigError when a run has left its records here, or a new one would overwrite what
    lies here."""
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
    for name in WRITTEN_ANEW:
        if (run_dir / name).exists():
            raise ConfigError(
                f"{run_dir} holds a {name}, which a run there would overwrite: choose another "
                "--run-dir, or move it away."
            )


@contextlib.contextmanager
def tentative_config(run_dir: Path, config: Config) -> Iterator[Callable[[], None]]:
    """Writes config.json, and puts back what was there unless the function that this yields is
    called: a run that never began leaves no flags behind. Raises ConfigError when it cannot be
    written."""
    path, kept = run_dir / "config.json", False
    before = path.read_bytes() if path.exists() else None

    def keep() -> None:
        nonlocal kept
        kept = True

    try:
        replace_file(path, config.to_json().encode())
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}.") from None
    try:
        yield keep
    finally:
        with contextlib.suppress(OSError):  # why the run did not begin is what counts
            if not kept and before is None:
                path.unlink(missing_ok=True)
            elif not kept and before is not None:
                replace_file(path, before)


def check_writable(path: Path) -> None:
    """Before the work, not after it; all stays as it is. Raises ConfigError."""
    new = not path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}.") from None
    if new:
        path.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: whoever reads `path` sees the old content or the new."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the last room of a full disk is not for half a file
            unfinished.unlink(missing_ok=True)
        raise
