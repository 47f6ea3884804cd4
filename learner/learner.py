"""The learner: what it does with a chunk, an update, its weights and its checkpoints."""

import itertools
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from common.config import CONFIRMATION, OF_CHECKPOINTS, SAMPLING, Config
from common.console import say
from common.errors import ConfigError, Mismatch, UserError
from common.lifeline import StopSignal
from common.machine import available_memory_bytes
from common.messages import Chunk, Weights
from common.network import load_state_vector, network_for, state_vector
from common.policy_file import Policy
from common.schedules import learning_rate_of
from common.timings import Timings
from learner.checkpoint import Checkpointer, Snapshot, load_newest
from learner.dqn import Trainer, UpdateStats, with_prefix
from learner.limiter import Limiter
from learner.prioritized import PrioritizedSampler
from learner.records import Records
from learner.replay import (
    Replay,
    Sampler,
    UniformSampler,
    check_fits,
    planned_bytes,
)

STANDARDIZE_FRAMES = 4096
# From one best policy that is kept to the next: each takes 5 to 15 ms, most of them for the disk,
# and a run that plays a hundred games at once may improve with every one.
KEEP_SECONDS = 1.0

# Greedy games of a policy: how many, their seed, what is called every env step. -> raw scores.
PlayGreedily = Callable[[Policy, int, int, Callable[[], None]], list[float]]


class SavedPlayer(Protocol):
    """What the learner must know of the player that shares its process in lock-step."""

    @property
    def network(self) -> torch.nn.Module: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def load_weights(self, version: int, vector: np.ndarray) -> None: ...


class Learner:
    """Replay, trainer, limiter and records of one run; fed by chunks, wherever they come from.

    The asynchronous learner process and the lock-step form drive the same object. player: of
    lock-step; its games are part of every checkpoint, and resume with it.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        resume: bool,
        started: float,
        player: SavedPlayer | None = None,
    ) -> None:
        self.config, self.run_dir, self._player = config, run_dir, player
        device = learner_device(config)
        torch.set_num_threads(config.learner_threads)
        # Where an input is always zero, a weight's first moment shrinks until it is a subnormal
        # number, which is slow to multiply: three in ten are, after some minutes of Pong.
        torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        replay_device = device if config.replay_device == "cuda" else torch.device("cpu")
        check_fits(config, *available_memory(replay_device), resume=resume)
        self.trainer = Trainer(config, device)
        gib = planned_bytes(config) / 2**30
        precision = "bfloat16" if self.trainer.online.in_bfloat16 else "float32"
        if config.cuda and config.precision == "auto":
            precision += " (convolutions in TensorFloat-32)"
        say(
            f"Learner on {device} with {config.learner_threads} CPU thread(s), in {precision}; "
            f"replay of {config.replay_transitions:,} transitions, {gib:.2f} GiB on "
            f"{replay_device}."
        )
        self.replay = Replay(config, make_sampler(config), replay_device)
        self.limiter = Limiter(
            config.samples_per_insert,
            config.tolerance_samples,
            config.learning_starts_transitions,
        )
        self.timings = Timings()
        # Transitions since the start of the run. Each env step makes one: those inserted are what
        # the records call env steps.
        self.inserted = self.sampled = 0
        # Of the update begun and not finished: its transitions' ids, what waits for the rest.
        self._begun: tuple[np.ndarray, Callable[[], tuple[UpdateStats, torch.Tensor]]] | None = None
        self.weights_version = 0
        self.mastered = False  # is the game, by the last ten that were played
        self._next_keep = 0.0
        self.checkpoints = Checkpointer(
            run_dir / "checkpoints", self.replay, config.checkpoints_kept
        )
        state = self._load() if resume else None
        if player and not (state and state["player"]):
            player.load_weights(self.weights_version, state_vector(self.trainer.policy))
        saved = state and state["records"]
        self.records = Records(config, run_dir, started, saved, self.inserted, self.updates)
        self._follow_scores()
        self._last_save = time.monotonic()

    @property
    def updates(self) -> int:
        return self.trainer.updates

    def may_sample(self) -> bool:
        enough = len(self.replay) >= self.config.batch_size
        return enough and self.limiter.may_sample(self.inserted, self.sampled)

    def insert_limit(self) -> float:
        """Transitions that the actors may have inserted in all, for now."""
        limit = self.limiter.insert_limit(self.sampled)
        if len(self.replay) < self.config.batch_size:  # after a checkpoint whose ring was lost
            limit = max(limit, self.inserted + self.config.batch_size)
        return limit

    def insert(self, chunk: Chunk) -> None:
        """Store a chunk, and enter the game that is over, if it tells of one, into the records,
        which step size and ratio follow. With the end of warm-up the input is standardized."""
        with self.timings.section("insert"):
            self.replay.add(chunk)
        before, self.inserted = self.inserted, self.inserted + len(chunk)
        starts = self.config.learning_starts_transitions
        if before < starts <= self.inserted and self.config.standardize:
            self.trainer.standardize(self.replay.spread_frames(STANDARDIZE_FRAMES))
        if chunk.policy_version >= 0:
            self.records.saw_lag(max(0, self.weights_version - chunk.policy_version))
        if chunk.episode:
            if self.records.game(chunk.episode, self.inserted, self.updates):
                self._keep_best()
            self._follow_scores()

    def confirm(
        self,
        play: PlayGreedily,
        stop: StopSignal | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """If the last games look like those of a solved run: let greedy games of the policy decide
        whether it is one. Nothing is learned meanwhile.

        The mean of a hundred games is that of all policies that played in them, and only the newest
        of those is kept. A stop leaves it open, and so does --max-minutes; in lock-step, which must
        not depend on either, stop is None. A policy one of whose games takes ten times as long as
        the longest of the last hundred (it goes round in circles) is not confirmed.
        """
        ending = self.records.ending

        def must_end() -> bool:
            return stop is not None and bool(stop.reason or ending.out_of_time)

        if not ending.looks_solved or must_end():
            return
        config, games = self.config, self.records.scores.games
        turns, enough = itertools.count(), config.confirm_games + 10 * self.records.longest_game
        network = network_for(config).for_inference()
        load_state_vector(network, state_vector(self.trainer.policy))
        seed = int(np.random.SeedSequence([config.seed, CONFIRMATION, games]).generate_state(1)[0])

        def turn() -> None:
            beat()
            if must_end():
                raise _Told
            if next(turns) >= enough:
                raise TimeoutError("it does not come to an end")

        say(f"{config.confirm_games} greedy games have to confirm that the run is solved.")
        scores: list[float] = []
        try:
            with self.timings.section("confirm"):
                scores = play(Policy(network, config), config.confirm_games, seed, turn)
        except _Told:
            return
        except Exception as error:  # the game's: what is learned shall not be lost for that
            if not isinstance(error, (UserError, TimeoutError)):
                traceback.print_exc()
            what = f"{type(error).__name__}: {error}"
            say(f"A greedy game failed (--confirm-games 0 does without): {what}")
        if self.records.confirm(scores, self.inserted):
            self.save_policy()
        self._follow_scores()

    def _keep_best(self) -> None:
        """Once in KEEP_SECONDS; but what solves the run at once, and every one in lock-step, which
        must not depend on the clock."""
        now = time.monotonic()
        if now >= self._next_keep or self.records.ending.solved or self._player:
            self._next_keep = now + KEEP_SECONDS
            self.save_policy()

    def _follow_scores(self) -> None:
        """Sets step size and samples per insert by the recent scores: smaller steps as play
        improves, since large ones undo what is learned; next to no samples while the game is
        mastered, or a run might end with another policy than the one that won its games.

        Mastered it is until the last ten are below what a hundred have to exceed: else a policy
        that is just good enough would be learned away by turns while it is to show that.
        """
        config, scores = self.config, self.records.scores
        mark = min(config.reward, config.mastery_score) if self.mastered else config.mastery_score
        self.mastered = scores.progress(mark) == 1.0
        progress = scores.progress(config.mastery_score)
        self.trainer.adam.learning_rate = learning_rate_of(config, progress)
        ratio = config.samples_per_insert
        if self.mastered and config.rests_when_mastered and not self.records.ending.in_doubt:
            ratio = config.samples_per_insert_mastered
        if ratio != self.limiter.samples_per_insert:
            self.limiter = self.limiter.at_ratio(ratio, self.inserted)

    def update(self) -> None:
        """One batch, one gradient step; after every publish_period_updates a new version of the
        policy (which need not be published)."""
        with self.timings.section("sample"):
            batch, ids = self.replay.sample(self.config.batch_size)
            batch = batch.to(self.trainer.device)
        with self.timings.section("train"):
            outcome = self.trainer.begin(batch)
            self.finish_update()  # the one before
            self._begun = ids, outcome
            if self._player or not self.trainer.is_captured:
                self.finish_update()  # this one too
        self.sampled += self.config.batch_size
        if self.updates % self.config.publish_period_updates == 0:
            self.trainer.average_policy()
            self.weights_version += 1

    def finish_update(self) -> None:
        """Of the update begun last: its errors become priorities, its figures records.

        What a GPU was given is finished once the next update is launched, but in lock-step: so the
        host prepares one while the GPU computes another, and priorities are an update late.
        """
        if self._begun is None:
            return
        (ids, outcome), self._begun = self._begun, None
        stats, td_error = outcome()
        live = ids >= self.replay.first_id  # chunks may have taken the place of others since
        if live.any():
            self.replay.sampler.update(ids[live], td_error.cpu().numpy()[live])
        self.records.updated(stats)

    def weights(self) -> Weights:
        """The newest version for the actors. Raises NotFinite rather than publish NaN."""
        self.trainer.check_weights()
        return Weights(self.weights_version, state_vector(self.trainer.policy))

    def save_policy(self) -> None:
        """Keep the policy as the run's best."""
        self.trainer.check_weights()
        self.records.save_policy(self.trainer.policy, self.updates, self.inserted)

    def save(self) -> None:
        """A checkpoint of everything, written while learning goes on; left out while the one
        before is still being written."""
        if self.checkpoints.busy:
            say("No checkpoint this time: the one before is still being written.")
            return
        with self.timings.section("checkpoint"):
            self.checkpoints.save(self._snapshot())

    def save_now(self, beat: Callable[[], None] = lambda: None) -> None:
        """The same, done when it returns. beat: called as it gets on."""
        with self.timings.section("checkpoint"):
            self.checkpoints.save_now(self._snapshot(), beat)

    def save_when_due(self) -> None:
        """Every checkpoint_period_seconds; in lock-step, whose games must stand still meanwhile,
        done when it returns."""
        if not 0 < self.config.checkpoint_period_seconds < time.monotonic() - self._last_save:
            return
        if self._player:
            self.save_now()
        else:
            self.save()
        self._last_save = time.monotonic()

    def _snapshot(self) -> Snapshot:
        self.finish_update()
        self.trainer.check_weights()
        self.records.metrics.flush()  # no row of before it may be missing after a kill -9
        state = {
            "layout": self._layout(),
            "updates": self.updates,
            "inserted": self.inserted,
            "sampled": self.sampled,
            "limiter": [self.limiter.samples_per_insert, self.limiter.carried_samples],
            "weights_version": self.weights_version,
            "mastered": self.mastered,
            "first_id": self.replay.first_id,
            "end_id": self.replay.end_id,
            "sampler": self.replay.sampler.state_dict(self.replay.first_id, self.replay.end_id),
            "torch_rng": torch.get_rng_state().numpy(),
            "records": self.records.state_dict(),
            "player": self._player and self._player.state_dict(),
        }
        tensors = self.trainer.tensors()
        if self._player:
            tensors |= {
                f"player.{name}": tensor.clone(memory_format=torch.contiguous_format)
                for name, tensor in self._player.network.state_dict().items()
            }
        return Snapshot(self.inserted, tensors, state, list(self.replay.chunks))

    def _layout(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that loads it."""
        return {name: getattr(self.config, name) for name in OF_CHECKPOINTS}

    def _check_layout(self, state: Any) -> None:
        for name, value in self._layout().items():
            if (theirs := state["layout"].get(name)) != value:
                raise Mismatch(
                    f"The checkpoint in {self.run_dir} is of another game or network: its {name} "
                    f"is {theirs!r}, this run's is {value!r}."
                )

    def _load(self) -> Any:
        """Go on from the newest checkpoint. -> its state."""
        folder = self.run_dir / "checkpoints"
        base, tensors, state = load_newest(folder, self.replay, self._check_layout, log=say)
        self.checkpoints.base = base
        self.replay.end_id = state["end_id"]  # also where nothing of the ring could be kept
        self.trainer.load_tensors(tensors)
        self.trainer.updates = state["updates"]
        self.inserted, self.sampled = state["inserted"], state["sampled"]
        ratio, carried = state["limiter"]
        self.limiter = replace(self.limiter, samples_per_insert=ratio, carried_samples=carried)
        self.weights_version = state["weights_version"]
        self.mastered = state["mastered"]
        self.replay.sampler.load_state_dict(state["sampler"])
        # What the ring overwrote while it was saved has not come back: nor may its priorities.
        self.replay.sampler.evicted(state["first_id"], max(state["first_id"], self.replay.first_id))
        torch.set_rng_state(torch.from_numpy(state["torch_rng"]))
        if self._player and state["player"]:
            self._player.load_state_dict(state["player"])
            self._player.network.load_state_dict(with_prefix(tensors, "player."))
        say(f"Resumed at {self.inserted:,} env steps, {self.updates:,} updates.")
        return state


class _Told(Exception):
    """To end, while greedy games are played."""


def make_sampler(config: Config) -> Sampler:
    rng = np.random.default_rng([config.seed, SAMPLING])
    if not config.prioritized:
        return UniformSampler(rng)
    return PrioritizedSampler(
        config.replay_transitions, config.priority_alpha, config.priority_beta, rng
    )


def learner_device(config: Config) -> torch.device:
    """Where it computes; on a GPU also sets how convolutions round. Raises ConfigError when --cuda
    is asked for and there is no GPU."""
    if config.cuda and not torch.cuda.is_available():
        raise ConfigError(
            "--cuda needs an NVIDIA GPU and a CUDA build of PyTorch, and torch finds none here: "
            "leave the flag out, or resume with --no-cuda, to learn on the CPU."
        )
    if not config.cuda:
        return torch.device("cpu")
    # PyTorch's default is to round the factors of convolutions.
    torch.backends.cudnn.allow_tf32 = config.precision == "auto"
    # With its number, as tensors name it: `cuda` and `cuda:0` are not equal.
    return torch.device("cuda", torch.cuda.current_device())


def available_memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "GPU memory"
    return available_memory_bytes(), "memory"
