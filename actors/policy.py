"""Epsilon-greedy over a batch of observations: a pure function."""

import numpy as np
import torch

from common.network import DQN


@torch.inference_mode()
def epsilon_greedy(
    network: DQN, obs: np.ndarray, epsilon: float, rng: np.random.Generator
) -> np.ndarray:
    """obs [k, STACK, H, W] u8 -> actions [k] i64; each row random with probability epsilon.

    Only the rows that act greedily pass through the network.
    """
    actions = rng.integers(network.n_actions, size=len(obs))
    greedy = rng.random(len(obs)) >= epsilon
    if greedy.any():
        chosen = obs if greedy.all() else obs[greedy]
        actions[greedy] = network(torch.from_numpy(chosen)).argmax(dim=1).numpy()
    return actions
