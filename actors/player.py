"""k games stepped together: one batched forward pass, one chunk stream."""

import collections
import dataclasses
from typing import Any

import numpy as np

from actors.accumulator import Accumulator
from actors.game import NOOP, Game, Step, game_for, game_seed, idle_env_steps
from actors.observations import Observations
from actors.policy import epsilon_greedy
from common.config import Config
from common.messages import Chunk, EpisodeStats, Spec
from common.network import load_state_vector, network_for
from common.timings import Timings


class Player:
    """The games of one actor, the network that plays them, and their accumulators.

    The first game begins at once. The others join when it has played for two chunks, so the first
    to be sent need not wait until all are loaded; and they do so a fraction of a chunk apart, so
    that their chunks do not arrive in bursts for ever after.

    seed: anything np.random.SeedSequence takes; every game draws from it apart, and so does the
    policy, for how long it idles too.
    """

    def __init__(self, config: Config, seed: list[int]) -> None:
        self.config = config
        policy_seed, *spawned = np.random.SeedSequence(seed).spawn(1 + config.games_per_actor)
        self.rng = np.random.default_rng(policy_seed)
        self._game_seeds = [game_seed(one) for one in spawned]
        self.network = network_for(config).for_inference()
        self.weights_version = -1
        self.timings = Timings()
        self.games: list[Game] = []
        self.accumulators: list[Accumulator] = []
        self._observations = Observations(config.games_per_actor)
        self.first_game_steps = 0
        self.lengths: list[int] = []  # of the games in progress
        self._idle: list[int] = []  # env steps for which each of them still does nothing
        self._over: collections.deque[EpisodeStats] = collections.deque()  # not yet reported
        self._join()

    @property
    def obs(self) -> np.ndarray:
        """[games, STACK, 84, 84] u8, what the network sees, newest frame last."""
        return self._observations.obs[: len(self.games)]

    def load_weights(self, version: int, vector: np.ndarray) -> None:
        """vector: [P] f32, as `state_vector` makes it of a network like this one."""
        load_state_vector(self.network, vector)
        self.weights_version = version

    def step(self, epsilon: float) -> list[Chunk]:
        """One env step of every game. Returns the chunks that became complete."""
        if self.first_game_steps >= joins_after(self.config, len(self.games)):
            self._join()
        self.first_game_steps += 1
        with self.timings.section("infer"):
            actions = epsilon_greedy(self.network, self.obs, epsilon, self.rng).tolist()
        chunks: list[Chunk] = []
        with self.timings.section("play"):
            for i, action in enumerate(actions):
                if self._idle[i]:
                    self._idle[i], action = self._idle[i] - 1, NOOP
                chunks += self._enter(i, action, self.games[i].step(action))
        return chunks

    def _enter(self, i: int, action: int, step: Step) -> list[Chunk]:
        """Enters one step into the n-step buffer, the frame stack and the scores. -> chunks that it
        completes."""
        self.lengths[i] += 1
        frame = self.games[i].frame()
        reward = float(np.sign(step.reward)) if self.config.clip_rewards else step.reward
        chunks = self.accumulators[i].append(
            action, reward, frame, step.terminated, step.truncated, self.weights_version
        )
        if step.terminated or step.truncated:
            self._begin(i)
        else:
            self._observations.push(i, frame)
        for score in self.games[i].scores:
            # At least 1: a game may end within reset(), while it is begun.
            length, self.lengths[i] = max(1, self.lengths[i]), 0
            self._over.append(EpisodeStats(score, length))
        self.games[i].scores.clear()
        return [self._reporting(chunk) for chunk in chunks]

    def _reporting(self, chunk: Chunk) -> Chunk:
        """The chunk with the statistics of a finished game that still has to be reported."""
        if not self._over:
            return chunk
        return dataclasses.replace(chunk, episode=self._over.popleft())

    def _join(self) -> None:
        """One more game begins."""
        i, config = len(self.games), self.config
        self.games.append(game_for(config, self._game_seeds[i]))
        self.accumulators.append(Accumulator(Spec.of(config)))
        self.lengths.append(0)
        self._idle.append(0)
        self._begin(i, self._game_seeds[i])

    def _begin(self, i: int, seed: int | None = None) -> None:
        frame = self.games[i].reset(seed)
        self._observations.begin(i, frame)
        self.accumulators[i].begin(frame)
        new_game = seed is not None or self.games[i].scores  # not the next of its lives
        most = self.config.idle_max_env_steps if new_game else 0
        self._idle[i] = idle_env_steps(self.games[i], most, self.rng)

    def close(self) -> None:
        for game in self.games:
            game.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights; lock-step checkpoints resume from it bit for bit."""
        return {
            "rng": self.rng.bit_generator.state,
            "games": [game.state_dict() for game in self.games],
            "accumulators": [a.state_dict() for a in self.accumulators],
            "obs": self.obs.tobytes(),
            "first_game_steps": self.first_game_steps,
            "lengths": list(self.lengths),
            "idle": list(self._idle),
            "over": [dataclasses.astuple(stats) for stats in self._over],
            "weights_version": self.weights_version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        while len(self.games) < len(state["games"]):
            self._join()
        self.rng.bit_generator.state = state["rng"]  # whatever those drew that joined
        for game, saved in zip(self.games, state["games"], strict=True):
            game.load_state_dict(saved)
        for accumulator, saved in zip(self.accumulators, state["accumulators"], strict=True):
            accumulator.load_state_dict(saved)
        self.obs[:] = np.frombuffer(state["obs"], np.uint8).reshape(self.obs.shape)
        self.first_game_steps = state["first_game_steps"]
        self.lengths = list(state["lengths"])
        self._idle = list(state["idle"])
        self._over = collections.deque(EpisodeStats(*stats) for stats in state["over"])
        self.weights_version = state["weights_version"]


def joins_after(config: Config, game: int) -> float:
    """Env steps of an actor's first game before game number `game`, from 0, begins."""
    if game >= config.games_per_actor:
        return float("inf")
    chunk = config.chunk_transitions
    return 2 * chunk + game * chunk // config.games_per_actor if game else 0
