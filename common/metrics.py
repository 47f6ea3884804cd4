"""What a run keeps of itself: the scores of its games, TensorBoard events, metrics.csv."""

import collections
import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from common.config import Config
from common.errors import ConfigError
from common.run_folder import replace_file

COLUMNS = (
    *("kind", "wall_seconds", "env_steps", "updates", "games", "score", "mean_score_100"),
    *("epsilon", "env_steps_per_second", "updates_per_second", "policy_lag_updates"),
    *("loss", "q_mean"),
)
SOLVED_GAMES = 100
PROGRESS_GAMES = 10


class Scores:
    """Raw scores of finished games; `mean_100` is over the last 100 (fewer at the start)."""

    def __init__(self) -> None:
        self.last: collections.deque[float] = collections.deque(maxlen=SOLVED_GAMES)
        self.games = 0
        self.best_mean_100 = float("-inf")  # of the policy that was kept
        self.lowest_mean_10 = float("inf")  # of the whole run: where the way to mastery began

    def add(self, score: float) -> None:
        self.last.append(score)
        self.games += 1
        if len(self.last) >= PROGRESS_GAMES:
            self.lowest_mean_10 = min(self.lowest_mean_10, self.mean_10)

    @property
    def mean_10(self) -> float:
        """Over the last 10 games, once there are so many."""
        return sum(list(self.last)[-PROGRESS_GAMES:]) / PROGRESS_GAMES

    @property
    def mean_100(self) -> float:
        return sum(self.last) / len(self.last) if self.last else float("nan")

    def is_new_best(self) -> bool:
        """Are 100 games behind their mean, and does it beat that of the policy kept?"""
        return self.games >= SOLVED_GAMES and self.mean_100 > self.best_mean_100

    def progress(self, mastery: float) -> float:
        """The way of the mean of 10 games from its lowest so far, 0, to `mastery`, 1.

        At 1 the last 10 games say what the last 100 will, if play stays as it is.
        """
        if len(self.last) < PROGRESS_GAMES:
            return 0.0
        if self.mean_10 >= mastery:
            return 1.0
        return (self.mean_10 - self.lowest_mean_10) / (mastery - self.lowest_mean_10)

    def solved(self, reward: float) -> bool:
        return self.games >= SOLVED_GAMES and self.mean_100 > reward


class Metrics:
    """Writes the records of one run folder: TensorBoard events and metrics.csv.

    A disk that is full or gone costs rows and points, never the run: `error` says what is wrong,
    and every `flush` tries again. resume_env_steps: where a resumed run goes on; what was recorded
    beyond it is lived through again, so it is dropped.
    """

    def __init__(self, config: Config, run_dir: Path, resume_env_steps: int | None = None) -> None:
        self.error: OSError | None = None
        self._run_dir, self._csv_path = run_dir, run_dir / "metrics.csv"
        if resume_env_steps is not None and self._csv_path.exists():
            _trim_csv(self._csv_path, resume_env_steps)
        self._whole_bytes = self._csv_path.stat().st_size if self._csv_path.exists() else 0
        self._open(None if resume_env_steps is None else resume_env_steps + 1)
        rows = [f"|{f.name}|{getattr(config, f.name)}|" for f in dataclasses.fields(config)]
        self._writer.add_text("config", "\n".join(["|setting|value|", "|-|-|", *rows]))

    def scalars(self, values: dict[str, float], env_steps: int) -> None:
        if self.error:
            return
        with self._surviving():
            for tag, value in values.items():
                if value == value:  # TensorBoard draws NaN as a triangle; leave it out
                    self._writer.add_scalar(tag, value, env_steps)

    def row(self, kind: str, values: dict[str, Any]) -> None:
        """kind: "game" or "period"; floats are written with 6 significant digits."""
        if self.error:
            return
        shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()}
        with self._surviving():
            self._csv.writerow({"kind": kind, **shown})

    def flush(self) -> None:
        """Onto the disk; after trouble into fresh files, since a broken one cannot go on."""
        with self._surviving():
            if self.error:
                self._probe()
                self.close()
                self._cut_back()
                self._open(None)
                self.error = None
            self._file.flush()
            self._whole_bytes = self._file.tell()
            self._writer.flush()

    def close(self) -> None:
        for stream in (self._file, self._writer):
            with contextlib.suppress(OSError):
                stream.close()

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # 2 s: only who writes pays

        self._file: TextIO = self._csv_path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS, restval="")
        if not self._whole_bytes:
            self._csv.writeheader()
        self._writer = SummaryWriter(str(self._run_dir), purge_step=purge_step, flush_secs=10)

    def _cut_back(self) -> None:
        """To whole rows: one may have been cut short, or the file be gone or an older one."""
        if not self._csv_path.exists():
            self._whole_bytes = 0
            return
        if self._csv_path.stat().st_size < self._whole_bytes:
            self._whole_bytes = self._csv_path.read_bytes().rfind(b"\n") + 1
        os.truncate(self._csv_path, self._whole_bytes)

    def _probe(self) -> None:
        """Raises OSError while there is no room: a writer would only leave an empty file more."""
        path = self._run_dir / "probe.unfinished"
        try:
            path.write_bytes(bytes(1 << 16))
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error


def rows_of(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv: the last line may be cut short, where a run was killed or
    still goes on."""
    lines, _, _ = path.read_bytes().rpartition(b"\n")
    rows = csv.DictReader(io.StringIO(lines.decode(), newline=""))
    return [row for row in rows if None not in row.values()]


def _trim_csv(path: Path, env_steps: int) -> None:
    """Drop the rows that a resumed run will live through again. Raises ConfigError where there are
    others than a run writes."""
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, COLUMNS)
    writer.writeheader()
    try:
        for row in rows_of(path):
            if int(row["env_steps"]) <= env_steps:
                writer.writerow({name: row[name] for name in COLUMNS} | row)
    except (KeyError, ValueError, csv.Error):
        raise ConfigError(
            f"{path} is not as a run wrote it: move it away to go on without its rows."
        ) from None
    replace_file(path, kept.getvalue().encode())
