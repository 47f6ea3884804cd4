"""k games stepped together: one batched forward pass, one chunk stream."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from actors.accumulator import Accumulator, with_episode
from actors.game import Game, game_for, game_seed
from actors.observations import Observations
from actors.policy import epsilon_greedy
from common.config import Config
from common.errors import ConfigError
from common.messages import Chunk, EpisodeStats, Spec
from common.network import load_state_vector, network_for
from common.timings import Timings


class Player:
    """The games of one actor, the network that plays them, and their accumulators.

    seed: anything np.random.SeedSequence takes; every game and the policy draw from it apart.
    beat: called before each game is made and started, which may take a while.
    obs: [k, STACK, 84, 84] u8, what the network sees, newest frame last.
    """

    def __init__(
        self, config: Config, seed: list[int], beat: Callable[[], None] = lambda: None
    ) -> None:
        self.config = config
        policy_seed, *spawned = np.random.SeedSequence(seed).spawn(1 + config.envs_per_actor)
        self.rng = np.random.default_rng(policy_seed)
        game_seeds = [game_seed(one) for one in spawned]
        self.games: list[Game] = []
        for first_seed in game_seeds:
            beat()
            self.games.append(game_for(config, first_seed))
        if self.games[0].n_actions != config.n_actions:
            raise ConfigError(
                f"{config.env} has {self.games[0].n_actions} actions here, the configuration says "
                f"{config.n_actions}: actor and learner do not play the same game."
            )
        self.network = network_for(config).for_playing()
        self.weights_version = -1
        self.timings = Timings()
        k, chunk = len(self.games), config.chunk_transitions
        self.accumulators = [
            Accumulator(Spec.of(config), max(1, chunk * (i + 1) // k)) for i in range(k)
        ]
        self._observations = Observations(k)
        self.obs = self._observations.obs
        self.lengths = [0] * k  # of the games in progress
        self._over: collections.deque[EpisodeStats] = collections.deque()  # not yet reported
        for i, first_seed in enumerate(game_seeds):
            beat()
            self._begin(i, first_seed)

    def load_weights(self, version: int, vector: np.ndarray) -> None:
        load_state_vector(self.network, vector)
        self.weights_version = version

    def step(self, epsilon: float) -> list[Chunk]:
        """One env step of every game. Returns the chunks that became complete."""
        with self.timings.section("infer"):
            actions = epsilon_greedy(self.network, self.obs, epsilon, self.rng)
        chunks: list[Chunk] = []
        with self.timings.section("play"):
            for i, action in enumerate(actions.tolist()):
                chunks += self._step_game(i, action, epsilon)
        return chunks

    def _step_game(self, i: int, action: int, epsilon: float) -> list[Chunk]:
        step = self.games[i].step(action)
        self.lengths[i] += 1
        reward = float(np.sign(step.reward)) if self.config.clip_rewards else step.reward
        chunks = self.accumulators[i].append(
            action, reward, step.frame, step.terminated, step.truncated, self.weights_version
        )
        if step.terminated or step.truncated:
            self._begin(i)
        else:
            self._observations.push(i, step.frame)
        for score in self.games[i].scores:
            length, self.lengths[i] = max(1, self.lengths[i]), 0
            self._over.append(EpisodeStats(score, length, epsilon, self.weights_version))
        self.games[i].scores.clear()
        return [self._reporting(chunk) for chunk in chunks]

    def _reporting(self, chunk: Chunk) -> Chunk:
        """The chunk with the statistics of a finished game that still has to be reported."""
        return with_episode(chunk, self._over.popleft()) if self._over else chunk

    def _begin(self, i: int, seed: int | None = None) -> None:
        frame = self.games[i].reset(seed)
        self._observations.begin(i, frame)
        self.accumulators[i].begin(frame)

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
            "lengths": list(self.lengths),
            "over": [dataclasses.astuple(stats) for stats in self._over],
            "weights_version": self.weights_version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        for game, saved in zip(self.games, state["games"], strict=True):
            game.load_state_dict(saved)
        for accumulator, saved in zip(self.accumulators, state["accumulators"], strict=True):
            accumulator.load_state_dict(saved)
        self.obs[:] = np.frombuffer(state["obs"], np.uint8).reshape(self.obs.shape)
        self.lengths = list(state["lengths"])
        self._over.extend(EpisodeStats(*stats) for stats in state["over"])
        self.weights_version = state["weights_version"]
