"""The learner's bookkeeping: scores, rates, result.json, best.safetensors."""

import collections
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from common.config import Config
from common.console import say
from common.errors import ConfigError
from common.messages import EpisodeStats
from common.metrics import SOLVED_GAMES, Metrics, Scores
from common.policy_file import mean_score_of, save_policy
from common.provenance import provenance
from common.router import LearnerEndpoint
from common.run_folder import replace_file
from common.schedules import epsilon_of
from learner.dqn import UpdateStats
from learner.ending import Ending

if TYPE_CHECKING:
    from learner.learner import Learner


WARNING_PERIOD_SECONDS = 60.0


class Rates:
    """Counters to per-second rates between two looks.

    least_seconds: after a shorter time the rates before are returned: a run that ends just after a
    period would otherwise show a burst.
    """

    def __init__(self, counts: dict[str, float], least_seconds: float) -> None:
        self._time, self._counts = time.monotonic(), counts
        self._least_seconds, self._rates = least_seconds, dict.fromkeys(counts, 0.0)

    def per_second(self, counts: dict[str, float], now: float) -> dict[str, float]:
        elapsed = now - self._time
        if elapsed > self._least_seconds:
            self._rates = {k: (v - self._counts.get(k, 0)) / elapsed for k, v in counts.items()}
            self._time, self._counts = now, dict(counts)
        return self._rates


class Records:
    """What a run tells: per finished game, per period, and at its end.

    saved: this class's `state_dict` in the checkpoint a run resumes from, or None.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        started: float,
        saved: dict[str, Any] | None,
        env_steps: int,
        updates: int,
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.scores = Scores()
        self.ending = Ending(config, self.scores, started, saved)
        self._lengths: collections.deque[int] = collections.deque(maxlen=SOLVED_GAMES)
        self._lags: collections.deque[int] = collections.deque(maxlen=200)
        self._updates, self._sums = 0, UpdateStats(0.0, 0.0, 0.0)  # of the period
        if saved:
            self.scores.last.extend(saved["last_scores"])
            self.scores.games = saved["games"]
            # A policy of a part of the run that was lost in a crash is a policy all the same.
            self.scores.best_mean_100 = max(
                _from_null(saved["best_mean_100"], -math.inf),
                mean_score_of(run_dir / "best.safetensors"),
            )
            self.scores.lowest_mean_10 = _from_null(saved["lowest_mean_10"], math.inf)
            self._lengths.extend(saved["lengths"])
            self._lags.extend(saved["lags"])
            self._updates, self._sums = saved["period"][0], UpdateStats(*saved["period"][1:])
        try:
            self.metrics = Metrics(config, run_dir, env_steps if saved else None)
        except OSError as error:
            raise ConfigError(f"Cannot write the records in {run_dir}: {error.strerror}.") from None
        # Lock-step's periods may be short, and nothing comes in after its end.
        least_seconds = config.log_period_seconds / 10 if config.actor_count else 0.0
        self._rates = Rates({"env_steps": env_steps, "updates": updates}, least_seconds)
        self._actor_rates = Rates({}, least_seconds)
        self._speed: float | None = None  # of the last period
        self._update_speed = 0.0
        self._next_tick = self._next_warning = 0.0
        if not config.actor_count:  # a lock-step run's rows depend on no interruption either
            period = config.log_period_env_steps
            self._next_tick = (env_steps // period + 1) * period
        self._told_env_steps = -1  # at the end of the last period
        self._policy_errors: dict[str, OSError] = {}  # by the file's name, until they are told
        self._refused = 0
        self._first = (time.monotonic(), env_steps)
        # Now: the files of the code may be others when the run ends.
        self._provenance = provenance("cuda" if config.cuda else "cpu")

    # -- what happens ---------------------------------------------------------------------------

    def saw_lag(self, versions: int) -> None:
        self._lags.append(versions * self.config.publish_period_updates)

    def updated(self, stats: UpdateStats) -> None:
        self._updates += 1
        self._sums.loss += stats.loss
        self._sums.q_mean += stats.q_mean
        self._sums.grad_norm += stats.grad_norm

    def game(self, game: EpisodeStats, env_steps: int, updates: int) -> bool:
        """A game is over. -> True when the 100-game mean is a new best: keep the policy. Never
        once the run is solved."""
        was_solved = self.ending.solved
        self.scores.add(game.score)
        self._lengths.append(game.length_env_steps)
        mean, speed = self.scores.mean_100, self._speed_now(env_steps)
        epsilon = self.epsilon(env_steps)
        say(
            f"{env_steps:>9,} env steps: game {self.scores.games} scored {game.score:+.0f}, "
            f"mean of last 100 {mean:+.2f}, epsilon {epsilon:.2f}, "
            f"speed {speed:.0f} env steps/s"
        )
        self.metrics.scalars(
            {
                "reward": game.score,
                "reward_100": mean,
                "epsilon": epsilon,
                "speed": speed,
                "rollout/ep_rew_mean": mean,
                "rollout/ep_len_mean": sum(self._lengths) / len(self._lengths),
            },
            env_steps,
        )
        self._row("game", env_steps, updates, score=game.score)
        self.ending.look(env_steps)
        return self.scores.is_new_best() and not was_solved

    def confirm(self, scores: Sequence[float], env_steps: int) -> bool:
        """Greedy games of the policy have been played, now that the run `looks_solved`. -> do they
        confirm it? scores: none where they could not be played."""
        mean = sum(scores) / len(scores) if scores else math.nan
        confirmed = self.ending.confirm(mean)
        found = f"mean {mean:+.2f} of {len(scores)}" if scores else "they could not be played"
        wanted = f"{self.config.good_score:+g} wanted, so learning goes on"
        say(f"Greedy games: {found}; {'confirmed' if confirmed else wanted}.")
        self.metrics.scalars({"greedy_mean": mean}, env_steps)
        return confirmed

    def tick(self, learner: "Learner", transport: LearnerEndpoint | None) -> None:
        """Called every turn of the loop; once per period writes what the period was like.

        Periods are seconds, or env steps in lock-step, where rows must not depend on the clock.
        """
        lock_step = transport is None
        now = float(learner.inserted) if lock_step else time.monotonic()
        period = self.config.log_period_env_steps if lock_step else self.config.log_period_seconds
        due = self._next_tick > 0 and now >= self._next_tick
        if due:
            self._period(learner, transport)
        if due or not self._next_tick:
            self._next_tick = (now // period + 1) * period

    @property
    def longest_game(self) -> int:
        """Of the last hundred, in env steps."""
        return max(self._lengths)

    # -- what is written ------------------------------------------------------------------------

    def _period(self, learner: "Learner", transport: LearnerEndpoint | None) -> None:
        env_steps, updates = learner.inserted, learner.updates
        self._told_env_steps = env_steps
        counts: dict[str, float] = {"env_steps": env_steps, "updates": updates}
        values = {
            "epsilon": self.epsilon(env_steps),
            "replay/size": len(learner.replay),
            "replay/bytes": learner.replay.bytes,
            "actors/policy_lag_updates": self._lag(),
            "time/samples_per_insert": self._samples_per_insert(learner),
            "train/learning_rate": learner.trainer.adam.learning_rate,
        }
        if transport:
            stats = transport.stats
            counts["mb"] = stats.bytes_in / 1e6
            values |= {
                "actors/alive": transport.alive,
                "actors/restarts": transport.restarts,
                "transport/refused": stats.refused,
                "transport/duplicates": stats.duplicates,
            }
            speeds = self._actor_rates.per_second(
                {str(i): float(n) for i, n in dict(transport.steps_by_actor).items()},
                self.ending.now,
            )
            values |= {f"actors/{i}/steps_per_s": speed for i, speed in speeds.items()}
            for actor_id, shares in transport.reports.items():
                values |= {f"timings/actor-{actor_id}/{k}": share for k, share in shares.items()}
        rates = self._rates.per_second(counts, self.ending.now)
        self._speed, self._update_speed = rates["env_steps"], rates["updates"]
        values |= {
            "speed": rates["env_steps"],
            "time/env_steps_per_s": rates["env_steps"],
            "time/env_frames_per_s": self.config.frames_per_env_step * rates["env_steps"],
            "time/updates_per_s": self._update_speed,
            "transport/mb_per_s": rates.get("mb", 0.0),
        }
        for name, share in learner.timings.fractions().items():
            values[f"timings/learner/{name}"] = share
        if self._updates:
            for tag in ("loss", "q_mean", "grad_norm"):
                values[f"train/{tag}"] = self._mean_update(tag)
        self.metrics.scalars(values, env_steps)
        self._row("period", env_steps, updates)
        self._updates, self._sums = 0, UpdateStats(0.0, 0.0, 0.0)
        self.metrics.flush()
        say(self._line(learner, values))
        if transport and transport.stats.refused > self._refused:
            self._refused = transport.stats.refused
            say(f"{self._refused} messages refused, the last: {transport.stats.last_refusal}.")
        self._warn(learner)

    def _warn(self, learner: "Learner") -> None:
        """Say what has gone wrong and is not mended, once a minute."""
        if time.monotonic() < self._next_warning:
            return
        problems = {
            "newest checkpoint": learner.checkpoints.error,
            "records (metrics.csv, TensorBoard)": self.metrics.error,
            "policy": next(iter(self._policy_errors.values()), None),
        }
        ended = self.ending.has_come  # what the end could not write, it tells itself
        found = [f"the {what}: {error}" for what, error in problems.items() if error and not ended]
        if found:
            say(f"Could not write {'; '.join(found)}. Training goes on without.")
            self._policy_errors.clear()
        if dead := learner.trainer.is_dead:
            rescue = "" if self.config.standardize else ", or with --standardize"
            say(
                "No gradient passes through the network: its units are dead, and it will learn "
                f"nothing more. Begin again with another --seed{rescue}."
            )
        if found or dead:
            self._next_warning = time.monotonic() + WARNING_PERIOD_SECONDS

    def _line(self, learner: "Learner", values: dict[str, float]) -> str:
        loss = values.get("train/loss", math.nan)
        return (
            f"{self.ending.wall_seconds:7.0f} s  {learner.inserted:>9,} env steps  "
            f"{learner.updates:>7,} updates  {values['speed']:6.0f} env steps/s  "
            f"{self._update_speed:5.1f} updates/s  epsilon {values['epsilon']:.2f}  "
            f"loss {_shown(loss, '.4f')}  mean score {_shown(self.scores.mean_100, '+.2f')}"
        )

    def _row(self, kind: str, env_steps: int, updates: int, score: float | None = None) -> None:
        self.metrics.row(
            kind,
            {
                "wall_seconds": round(self.ending.wall_seconds, 3),
                "env_steps": env_steps,
                "updates": updates,
                "games": self.scores.games,
                "score": "" if score is None else score,
                "mean_score_100": "" if not self.scores.last else self.scores.mean_100,
                "epsilon": self.epsilon(env_steps),
                "env_steps_per_second": self._speed_now(env_steps),
                "updates_per_second": self._update_speed,
                "policy_lag_updates": self._lag(),
                "loss": self._mean_update("loss") if self._updates else "",
                "q_mean": self._mean_update("q_mean") if self._updates else "",
            },
        )

    def save_policy(
        self, network: nn.Module, updates: int, env_steps: int, name: str = "best"
    ) -> None:
        """<name>.safetensors: the network and the configuration that it needs."""
        about = {
            "mean_score_100": self.scores.mean_100,
            "games": self.scores.games,
            "env_steps": env_steps,
            "updates": updates,
        }
        try:
            save_policy(self.run_dir / f"{name}.safetensors", network, self.config, about)
        except OSError as error:  # not kept, so not to be beaten: a game to come may try again
            self._policy_errors[name] = error
            return
        self._policy_errors.pop(name, None)
        if name == "best" and self.scores.games >= SOLVED_GAMES:
            self.scores.best_mean_100 = self.scores.mean_100

    def finish(self, learner: "Learner", transport: LearnerEndpoint | None, reason: str) -> bool:
        """result.json and the last rows; says why the run ended. -> all of it written?"""
        config = self.config
        lost = "best" in self._policy_errors
        self._policy_errors.clear()  # what could not be kept and is not the best any more
        # Before 100 games there is no best: it is the last one then, each time the run is left.
        kept = math.isfinite(self.scores.best_mean_100)
        kept = kept and (self.run_dir / "best.safetensors").exists()
        # That of a solved run has been kept, and no other is better.
        better = lost if self.ending.solved else self.scores.is_new_best()
        for name in ("last",) if kept and not better else ("last", "best"):
            self.save_policy(learner.trainer.policy, learner.updates, learner.inserted, name)
        wall = self.ending.wall_seconds
        mean, env_steps = self.ending.reached(learner.inserted)
        result = {
            "solved": self.ending.solved,
            "reason": reason,
            "env_steps": learner.inserted,
            "updates": learner.updates,
            "wall_seconds": round(wall, 3),
            "mean_score_100": _null(mean),
            "best_mean_score_100": _null(self.scores.best_mean_100),
            "greedy_mean_score": _null(self.ending.greedy_mean),
            "confirmed_seconds": _null(round(self.ending.confirmed_seconds, 3)),
            "games": self.scores.games,
            "env_steps_per_second": round(env_steps / wall, 3),
            "updates_per_second": round(learner.updates / wall, 3),
            "samples_per_insert": config.samples_per_insert,
            "samples_per_insert_mastered": config.samples_per_insert_mastered,
            "measured_samples_per_insert": _null(self._samples_per_insert(learner)),
            "seed": config.seed,
            "preset": config.preset,
            "env": config.env,
            "actors": config.actor_count,
            "actors_mastered": config.actors_in_all,
            "actor_restarts": transport.restarts if transport else 0,
            "device": str(learner.trainer.device),
            "captured_updates": learner.trainer.is_captured,
            "learner_threads": config.learner_threads,
            **self._provenance,
        }
        errors: list[OSError | None] = list(self._policy_errors.values())
        try:
            replace_file(
                self.run_dir / "result.json", json.dumps(result, indent=2).encode() + b"\n"
            )
        except OSError as error:
            errors.append(error)
        if transport or learner.inserted != self._told_env_steps:  # lock-step may just have told
            self._period(learner, transport)
        self.metrics.close()
        errors.append(self.metrics.error)
        for problem in filter(None, errors):
            say(f"Could not write the last records: {problem}.")
        say(reason)
        return not any(errors)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.ending.state_dict(),
            "last_scores": list(self.scores.last),
            "games": self.scores.games,
            "best_mean_100": _null(self.scores.best_mean_100),
            "lowest_mean_10": _null(self.scores.lowest_mean_10),
            "lengths": list(self._lengths),
            "lags": list(self._lags),
            "period": [self._updates, *dataclasses.astuple(self._sums)],
        }

    # -- small sums -----------------------------------------------------------------------------

    def epsilon(self, env_steps: int) -> float:
        """The actors' mean."""
        actors = max(self.config.actor_count, 1) if self.config.epsilon_ladder else 1
        return sum(epsilon_of(self.config, i, env_steps) for i in range(actors)) / actors

    def _speed_now(self, env_steps: int) -> float:
        """env steps/s of the last period; before its end, since the start."""
        started, first = self._first
        if self._speed is not None:
            return self._speed
        return (env_steps - first) / max(self.ending.now - started, 1e-9)

    def _lag(self) -> float:
        return sum(self._lags) / len(self._lags) if self._lags else 0.0

    def _mean_update(self, name: str) -> float:
        return float(getattr(self._sums, name)) / self._updates

    @staticmethod
    def _samples_per_insert(learner: "Learner") -> float:
        since_start = learner.inserted - learner.limiter.learning_starts_transitions
        return learner.sampled / since_start if since_start > 0 else math.nan


def _shown(value: float, form: str) -> str:
    """A number, or a dash while there is none."""
    return format(value, form) if math.isfinite(value) else "-"


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _from_null(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
