"""When a run is over: solved and confirmed, out of env steps or of time; and the time it took."""

import math
import time
from typing import Any, NamedTuple

from common.config import Config
from common.metrics import SOLVED_GAMES, Scores

# From one time that greedy games did not confirm a solved run to the next that they may: half of
# the games that count are new by then.
CONFIRM_AGAIN_GAMES = SOLVED_GAMES // 2


class Mark(NamedTuple):
    """The moment at which the last games were enough to call the run solved."""

    mean: float
    env_steps: int
    time: float  # monotonic, seconds


class Ending:
    """Is the run over, and why?

    scores: of its games, which others enter; started: the moment of the command (time.monotonic());
    saved: this class's `state_dict` in the checkpoint a run resumes from, or None.
    """

    def __init__(
        self, config: Config, scores: Scores, started: float, saved: dict[str, Any] | None
    ) -> None:
        self.config, self.scores = config, scores
        self.greedy_mean = math.nan  # of the last games that were to confirm it
        self.confirmed_seconds = math.nan  # when those had been played that did
        self._mark: Mark | None = None
        self._next_mark = 0  # after a mark that was not confirmed: so many games until another
        self._started = started
        self._wall_before = 0.0  # seconds that earlier parts of a resumed run took
        self._ended: float | None = None  # the moment at which learning did
        if saved:
            self._wall_before = saved["wall_seconds"]
            if saved["wanted"] == config.good_score:  # else it is another question now
                self._next_mark = saved["next_mark"]

    def look(self, env_steps: int) -> None:
        """A game has entered the scores: are they enough now?"""
        if not self._mark and self.scores.solved(self.config.reward) and not self.in_doubt:
            self._mark = Mark(self.scores.mean_100, env_steps, self.now)
            if self.solved:
                self._ended = self._mark.time

    def confirm(self, greedy_mean: float) -> bool:
        """Greedy games of the policy have been played, now that the run `looks_solved`. -> do they
        confirm it? greedy_mean: NaN where they could not be played."""
        self.greedy_mean = greedy_mean
        confirmed = greedy_mean >= self.config.good_score
        if confirmed and self._mark:
            self.confirmed_seconds = self._wall_before + time.monotonic() - self._started
            self._ended = self._mark.time
        else:
            self._mark, self._next_mark = None, self.scores.games + CONFIRM_AGAIN_GAMES
        return confirmed

    @property
    def looks_solved(self) -> bool:
        """Is it, but for the greedy games that have to confirm it?"""
        return self._mark is not None and not self.solved

    @property
    def solved(self) -> bool:
        confirmed = not self.config.confirm_games or math.isfinite(self.confirmed_seconds)
        return self._mark is not None and confirmed

    @property
    def in_doubt(self) -> bool:
        """Have greedy games, not long ago, said that the run is not solved?"""
        return self.config.confirm_games > 0 and self.scores.games < self._next_mark

    def finished(self, env_steps: int, told: str) -> str:
        """Why the run is over, or ''; from the first reason on its time stands still. told: why it
        was asked to end, or ''."""
        reason = self._reason(env_steps) or told
        if reason:
            self._ended = self.now
        return reason

    def _reason(self, env_steps: int) -> str:
        config = self.config
        if self._mark and self.solved:
            return f"Solved in {self._mark.env_steps:,} env steps!"
        if config.max_env_steps and env_steps >= config.max_env_steps:
            return f"Stopped at --max-env-steps {config.max_env_steps}."
        if self.out_of_time:
            return f"Stopped at --max-minutes {config.max_minutes:g}."
        return ""

    @property
    def out_of_time(self) -> bool:
        return 0 < 60 * self.config.max_minutes <= self.wall_seconds

    def reached(self, env_steps: int) -> tuple[float, int]:
        """-> mean of the last hundred games and env steps, as they were when the run was solved:
        games that came in afterwards do not take that back. env_steps: those until now."""
        if self._mark and self.solved:
            return self._mark.mean, self._mark.env_steps
        return self.scores.mean_100, env_steps

    @property
    def has_come(self) -> bool:
        return self._ended is not None

    @property
    def wall_seconds(self) -> float:
        """Of the whole run: from the command's start, interruptions left out, to the end of
        learning: the last checkpoint is not counted, nor are the greedy games that confirm it."""
        return self._wall_before + self.now - self._started

    @property
    def now(self) -> float:
        """The time that counts, which stands still once learning has ended."""
        return time.monotonic() if self._ended is None else self._ended

    def state_dict(self) -> dict[str, Any]:
        return {
            "wall_seconds": self.wall_seconds,
            "next_mark": self._next_mark,
            "wanted": self.config.good_score,
        }
