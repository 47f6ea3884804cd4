"""Proportional prioritized sampling (Schaul et al. 2016) behind the replay's Sampler interface."""

import itertools
from typing import Any

import numpy as np


class SumTree:
    """Non-negative priorities of `capacity` leaves; prefix sums answer draws in log time.

    Every node has BRANCHES children, so that few levels do: all operations take arrays, and are a
    handful of array operations per level, whatever their length.
    """

    BRANCHES = 16

    def __init__(self, capacity: int) -> None:
        # From the leaves up: [n, BRANCHES], row i belongs to node i of the level above.
        self.levels = [np.zeros((-(-capacity // self.BRANCHES), self.BRANCHES))]
        while (nodes := len(self.levels[-1])) > 1:
            self.levels.append(np.zeros((-(-nodes // self.BRANCHES), self.BRANCHES)))

    @property
    def total(self) -> float:
        return float(self.levels[-1].sum())

    @property
    def bytes(self) -> int:
        return sum(level.nbytes for level in self.levels)

    def set(self, leaves: np.ndarray, priorities: np.ndarray) -> None:
        """Where a leaf is named twice the last priority counts."""
        self.levels[0].reshape(-1)[leaves] = priorities
        at = leaves
        for below, above in itertools.pairwise(self.levels):
            at = at // self.BRANCHES  # to sum a common parent twice costs less than to find it out
            above.reshape(-1)[at] = below.take(at, axis=0).sum(axis=1)

    def get(self, leaves: np.ndarray) -> np.ndarray:
        priorities: np.ndarray = self.levels[0].reshape(-1)[leaves]
        return priorities

    def find(self, prefix_sums: np.ndarray) -> np.ndarray:
        """Leaf in whose share of [0, total) each prefix sum falls; [B] f64 -> [B] i64."""
        at, every = np.zeros(len(prefix_sums), np.int64), np.arange(len(prefix_sums))
        rest = prefix_sums
        for level in reversed(self.levels):
            sums = level.take(at, axis=0).cumsum(axis=1)
            # Below the sum of all: a branch that is empty is never entered, however rounding goes.
            rest = np.minimum(rest, np.nextafter(sums[:, -1], 0.0))
            child = (sums > rest[:, np.newaxis]).argmax(axis=1)  # the first
            rest = rest - sums[every, child - 1] * (child > 0)
            at = at * self.BRANCHES + child
        return at


class PrioritizedSampler:
    """P(i) = p_i^alpha / sum, p = |TD error| + epsilon; weight = (N P(i))^-beta / max weight.

    New transitions get the largest priority seen so far, so that each is likely to be replayed
    once (section 3.3). Draws are stratified: one from each of B equal shares of the total.
    """

    EPSILON = 1e-3

    def __init__(self, capacity: int, alpha: float, beta: float, rng: np.random.Generator) -> None:
        self.capacity, self.alpha, self.beta, self.rng = capacity, alpha, beta, rng
        self.tree = SumTree(capacity)
        self.max_priority = 1.0

    def added(self, first_id: int, end_id: int) -> None:
        at = np.arange(first_id, end_id) % self.capacity
        self.tree.set(at, np.full(len(at), self.max_priority**self.alpha))

    def evicted(self, first_id: int, end_id: int) -> None:
        at = np.arange(first_id, end_id) % self.capacity
        self.tree.set(at, np.zeros(len(at)))

    def sample(self, first_id: int, end_id: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        shares = (np.arange(count) + self.rng.random(count)) / count
        at = self.tree.find(shares * self.tree.total)
        probability = self.tree.get(at) / self.tree.total
        weights = ((end_id - first_id) * probability) ** -self.beta
        ids = first_id + (at - first_id) % self.capacity
        return ids, (weights / weights.max()).astype(np.float32)

    def update(self, ids: np.ndarray, td_errors: np.ndarray) -> None:
        priorities = np.abs(td_errors) + self.EPSILON
        self.max_priority = max(self.max_priority, float(priorities.max()))
        self.tree.set(ids % self.capacity, priorities**self.alpha)

    def state_dict(self, first_id: int, end_id: int) -> dict[str, Any]:
        return {
            "rng": self.rng.bit_generator.state,
            "max_priority": self.max_priority,
            "first_id": first_id,
            "priorities": self.tree.get(np.arange(first_id, end_id) % self.capacity),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.max_priority = state["max_priority"]
        ids = state["first_id"] + np.arange(len(state["priorities"]))
        self.tree.set(ids % self.capacity, state["priorities"])
