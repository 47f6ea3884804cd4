"""Stable-Baselines3's DQN with its own Atari wrappers: a gradient step, and the whole of it."""

import time
from typing import Any

import ale_py
import gymnasium
import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecFrameStack
from torch import Tensor, nn

from benchmarks.measure import ENV_STEPS, UPDATES, Side, growth, steadily
from benchmarks.peers.plain import plain_network

gymnasium.register_envs(ale_py)


class Features(nn.Module):
    """All layers but the last, which Stable-Baselines3 adds. `observations` come as x / 255."""

    def __init__(self, observation_space: Any, network: str) -> None:
        super().__init__()
        layers = list(plain_network(network))
        self.layers = nn.Sequential(*layers[:-1])
        self.features_dim = layers[-1].in_features

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.layers(observations)
        return features


def model(network: str, batch: int, **settings: Any) -> Any:
    """DQN with a replay of 20,000 and 5 % of the actions random."""
    game = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=1, seed=0), n_stack=4)
    policy = {
        "features_extractor_class": Features,
        "features_extractor_kwargs": {"network": network},
        "net_arch": [],
    }
    return DQN(
        "CnnPolicy",
        game,
        batch_size=batch,
        buffer_size=20_000,
        learning_rate=1e-4,
        exploration_initial_eps=0.05,
        exploration_final_eps=0.05,
        policy_kwargs=policy,
        device="cpu",
        **settings,
    )


def learner_sides(network: str, batch: int) -> dict[str, Side]:
    """`train()`: sampling and gradient steps/s, on 10,000 transitions of noise."""
    agent = model(network, batch)
    agent.set_logger(Logger(folder=None, output_formats=[]))
    noise = np.random.default_rng(0)
    nothing = np.zeros(1)
    for _ in range(10_000):
        obs = noise.integers(256, size=(1, 4, 84, 84), dtype=np.uint8)
        agent.replay_buffer.add(obs, obs, nothing, nothing, nothing, [{}])

    def update() -> int:
        agent.train(gradient_steps=4, batch_size=batch)
        return 4

    return {"update": steadily(update)}


def system_sides(network: str, batch: int, samples_per_insert: float) -> dict[str, Side]:
    """`learn()`: env steps/s and updates/s."""
    gradient_steps = 9  # at a time: with them the ratio comes out even for 1.8 and 32
    agent = model(
        network,
        batch,
        learning_starts=1_000,
        train_freq=round(gradient_steps * batch / samples_per_insert),
        gradient_steps=gradient_steps,
    )

    def learn(seconds: float) -> None:
        end = time.perf_counter() + seconds
        agent.learn(
            10**9,
            callback=lambda *_: time.perf_counter() < end,
            reset_num_timesteps=False,
            log_interval=10**9,
        )

    def counts() -> dict[str, float]:
        return {ENV_STEPS: agent.num_timesteps, UPDATES: agent._n_updates}

    while agent.num_timesteps <= 1_100:
        learn(0.5)
    return {"learn": growth(learn, counts)}
