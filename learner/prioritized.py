"""Proportional prioritized sampling (Schaul et al. 2016) behind the replay's Sampler interface."""

from typing import Any

import numpy as np


class SumTree:
    """Non-negative priorities of `capacity` leaves; prefix sums answer draws in log time.

    All operations take arrays: one pass per level of the tree, no Python loop per leaf.
    """

    def __init__(self, capacity: int) -> None:
        self.leaves = 1 << max(capacity - 1, 1).bit_length()
        self.nodes = np.zeros(2 * self.leaves)  # node i has children 2 i and 2 i + 1; root is 1

    @property
    def total(self) -> float:
        return float(self.nodes[1])

    def set(self, leaves: np.ndarray, priorities: np.ndarray) -> None:
        """Where a leaf is named twice the last priority counts."""
        if not len(leaves):
            return
        at = leaves + self.leaves
        self.nodes[at] = priorities
        while at[0] > 1:  # to sum a common parent twice costs less than to find it out
            at = at >> 1
            self.nodes[at] = self.nodes[2 * at] + self.nodes[2 * at + 1]

    def get(self, leaves: np.ndarray) -> np.ndarray:
        priorities: np.ndarray = self.nodes[leaves + self.leaves]
        return priorities

    def find(self, prefix_sums: np.ndarray) -> np.ndarray:
        """Leaf in whose share of [0, total) each prefix sum falls; [B] f64 -> [B] i64."""
        at = np.ones(len(prefix_sums), np.int64)
        rest = prefix_sums.copy()
        while at[0] < self.leaves:
            at *= 2
            left = self.nodes[at]
            # An empty right branch is never entered, however rounding left `rest`.
            right = (rest >= left) & (self.nodes[at + 1] > 0)
            rest -= left * right
            at += right
        return at - self.leaves


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
