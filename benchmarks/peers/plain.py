"""DQN on Atari as one writes it first, in the manner of single-file implementations (CleanRL).

One process, one game, batch 1 for acting, stacked observations in uniform replay, float networks
in PyTorch's default layout, Adam's default form. Written for this comparison.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import ENV_STEPS, UPDATES, Side, growth, repeat, steadily
from benchmarks.peers.games import ACTIONS, gymnasium_game

OBSERVATION = (4, 84, 84)


def plain_network(network: str) -> nn.Sequential:
    """network: nature (Mnih et al. 2015) or nips (2013). [B, 4, 84, 84] f32 -> [B, ACTIONS]."""
    if network == "nature":
        layers = [nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        width, hidden = 3136, 512
    else:
        layers = [nn.Conv2d(4, 16, 8, 4), nn.Conv2d(16, 32, 4, 2)]
        width, hidden = 2592, 256
    convolutions = [part for layer in layers for part in (layer, nn.ReLU())]
    head = [nn.Flatten(), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, ACTIONS)]
    return nn.Sequential(*convolutions, *head)


class PlainLearner:
    """Online and target network and one gradient step of DQN (Mnih et al. 2015)."""

    def __init__(self, network: str) -> None:
        self.online, self.target = plain_network(network), plain_network(network)
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=1e-4)
        self.updates = 0

    def update(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor
    ) -> None:
        """obs, next_obs: [B, 4, 84, 84] u8; action [B] i64; reward, discount: [B] f32."""
        with torch.no_grad():
            best = self.target(next_obs.float() / 255).max(dim=1).values
            wanted = reward + discount * best
        chosen = self.online(obs.float() / 255).gather(1, action[:, None]).squeeze(1)
        loss = F.mse_loss(chosen, wanted)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.updates += 1
        if self.updates % 1000 == 0:
            self.target.load_state_dict(self.online.state_dict())


class PlainReplay:
    """Stacked observations and their successors, in arrays."""

    def __init__(self, capacity: int) -> None:
        self.obs = np.zeros((capacity, *OBSERVATION), np.uint8)
        self.next_obs = np.zeros((capacity, *OBSERVATION), np.uint8)
        self.action = np.zeros(capacity, np.int64)
        self.reward = np.zeros(capacity, np.float32)
        self.discount = np.zeros(capacity, np.float32)
        self.added = 0

    def add(
        self, obs: np.ndarray, action: int, reward: float, over: bool, next_obs: np.ndarray
    ) -> None:
        at = self.added % len(self.action)
        self.obs[at], self.action[at], self.next_obs[at] = obs, action, next_obs
        self.reward[at], self.discount[at] = reward, 0.0 if over else 0.99
        self.added += 1

    def sample(self, batch: int) -> list[Tensor]:
        """Columns in the order in which `PlainLearner.update` takes them."""
        at = np.random.randint(min(self.added, len(self.action)), size=batch)
        columns = (self.obs, self.action, self.reward, self.discount, self.next_obs)
        return [torch.from_numpy(column[at]) for column in columns]


class PlainAgent:
    """One game and who plays it; random with probability epsilon."""

    def __init__(self, network: nn.Module, epsilon: float) -> None:
        self.network, self.epsilon = network, epsilon
        self.game = gymnasium_game()
        self.obs, _ = self.game.reset(seed=0)

    def step(self) -> tuple[np.ndarray, int, float, bool, np.ndarray]:
        """One env step. -> what `PlainReplay.add` takes."""
        if np.random.random() < self.epsilon:
            action = int(np.random.randint(ACTIONS))
        else:
            with torch.no_grad():
                obs = torch.from_numpy(self.obs).unsqueeze(0).float() / 255
                action = int(self.network(obs).argmax(dim=1))
        before = self.obs
        self.obs, reward, terminated, truncated, _ = self.game.step(action)
        step = before, action, float(reward), bool(terminated), self.obs
        if terminated or truncated:
            self.obs, _ = self.game.reset()
        return step


def actor_sides(network: str = "nips") -> dict[str, Side]:
    """Env steps/s of a greedy agent that keeps its transitions in a list."""
    agent = PlainAgent(plain_network(network), epsilon=0.0)
    kept = []

    def play() -> int:
        kept.append(agent.step())
        if len(kept) == 64:
            kept.clear()
        return 1

    return {"play": steadily(play)}


def learner_sides(network: str, batch: int) -> dict[str, Side]:
    """Gradient steps/s on batches sampled from 10,000 transitions of noise."""
    learner, replay = PlainLearner(network), PlainReplay(10_000)
    noise = np.random.default_rng(0)
    for _ in range(10_000):
        obs = noise.integers(256, size=OBSERVATION, dtype=np.uint8)
        replay.add(obs, 0, 0.0, False, obs)

    def update() -> int:
        learner.update(*replay.sample(batch))
        return 1

    return {"update": steadily(update)}


def system_sides(network: str, batch: int, samples_per_insert: float) -> dict[str, Side]:
    """Env steps/s and updates/s of acting and learning in turn, 5 % of the actions random."""
    learner, replay = PlainLearner(network), PlainReplay(20_000)
    agent = PlainAgent(learner.online, epsilon=0.05)
    while replay.added < 1_000:
        replay.add(*agent.step())
    began = replay.added

    def turn() -> int:
        replay.add(*agent.step())
        while batch * learner.updates <= samples_per_insert * (replay.added - began):
            learner.update(*replay.sample(batch))
        return 1

    def counts() -> dict[str, float]:
        return {ENV_STEPS: replay.added, UPDATES: learner.updates}

    return {"learn": growth(lambda seconds: repeat(turn, seconds), counts)}
