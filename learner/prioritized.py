"""Proportional prioritized sampling (Schaul et al. 2016) behind the replay's Sampler interface."""

from typing import Any

import numpy as np


class SumTree:
    """Non-negative priorities of `capacity` leaves, drawn by prefix sum.

    A sum tree of two levels: the leaves in blocks of 64, and the blocks' sums, accumulated anew at
    every draw. All work is a few operations on arrays: after an update has emptied the caches it is
    their number that costs.
    """

    BLOCK = 64

    def __init__(self, capacity: int) -> None:
        self.leaves = np.zeros((-(-capacity // self.BLOCK), self.BLOCK))
        self.sums = np.zeros(len(self.leaves))
        self._ends = np.zeros(len(self.leaves) + 1)  # before each block, and after the last

    @property
    def total(self) -> float:
        return float(self.sums.sum())

    @property
    def bytes(self) -> int:
        return self.leaves.nbytes + self.sums.nbytes + self._ends.nbytes

    def set(self, leaves: np.ndarray, priorities: np.ndarray) -> None:
        """leaves: [B] i64; priorities: [B] f64. Where a leaf is named twice the last one counts."""
        self.leaves.reshape(-1)[leaves] = priorities
        if len(leaves) < len(self.sums):
            blocks = leaves // self.BLOCK  # to add one up twice costs less than to find it out
            self.sums[blocks] = self.leaves.take(blocks, axis=0).sum(axis=1)
        else:
            self.leaves.sum(axis=1, out=self.sums)

    def get(self, leaves: np.ndarray) -> np.ndarray:
        priorities: np.ndarray = self.leaves.reshape(-1)[leaves]
        return priorities

    def find(self, prefix_sums: np.ndarray) -> np.ndarray:
        """Leaf in whose share of [0, total), which is not empty, each prefix sum falls.

        prefix_sums: [B] f64 -> [B] i64.

        Sums are clamped to just below the total of each level, so that rounding never finds a leaf
        of priority 0.
        """
        ends = self._ends[1:]
        self.sums.cumsum(out=ends)
        sums = np.minimum(prefix_sums, np.nextafter(ends[-1], 0.0))
        block = ends.searchsorted(sums, side="right")
        inner = self.leaves.take(block, axis=0).cumsum(axis=1)
        rest = np.minimum(sums - self._ends[block], np.nextafter(inner[:, -1], 0.0))
        found: np.ndarray = block * self.BLOCK + (inner > rest[:, np.newaxis]).argmax(axis=1)
        return found


class PrioritizedSampler:
    """P(i) = p_i^alpha / sum, p = |TD error| + epsilon; weight = (N P(i))^-beta, divided by the
    batch's largest. beta is constant, where the paper raises it to 1 in the course of a run.

    New transitions get the largest priority seen so far, so that each is likely to be replayed once
    (algorithm 1). Draws are stratified: one from each of B equal shares of the total.
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
        total = self.tree.total
        at = self.tree.find(shares * total)
        probability = self.tree.get(at) / total
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
