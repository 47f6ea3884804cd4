"""Proportional prioritized sampling (Schaul et al. 2016) behind the replay's Sampler interface."""

import math
from typing import Any

import numpy as np

from common.compiled import compiled

BRANCHES = 16  # of a node


class SumTree:
    """Non-negative priorities of `capacity` leaves, drawn by prefix sum.

    Each node above the leaves is the sum of the BRANCHES nodes below it, the last of a level padded
    with zeros. A batch descends, and is renewed, level by level: so what one leaf has to be fetched
    from memory is on its way while the others go on.
    """

    def __init__(self, capacity: int) -> None:
        sizes = [capacity]
        while sizes[-1] > 1:
            sizes[-1] = -(-sizes[-1] // BRANCHES) * BRANCHES
            sizes.append(sizes[-1] // BRANCHES)
        self.nodes = np.zeros(sum(sizes))  # leaves first, root last
        self._levels = np.cumsum([0, *sizes[:-1]])  # where each begins

    @property
    def total(self) -> float:
        return float(self.nodes[-1])

    @property
    def bytes(self) -> int:
        return self.nodes.nbytes

    def set(self, leaves: np.ndarray, priorities: np.ndarray) -> None:
        """leaves: [B] i64; priorities: [B] f64. Where a leaf is named twice the last one counts."""
        self.nodes[leaves] = priorities
        _add_up(self.nodes, self._levels, leaves)

    def get(self, leaves: np.ndarray) -> np.ndarray:
        priorities: np.ndarray = self.nodes[leaves]
        return priorities

    def find(self, prefix_sums: np.ndarray) -> np.ndarray:
        """Leaf in whose share of [0, total), which is not empty, each prefix sum falls; from total
        on the last of them.

        prefix_sums: [B] f64 -> [B] i64. Raises ValueError when there is nothing to find.
        """
        if len(prefix_sums) and not 0.0 < self.total < math.inf:
            raise ValueError(f"the priorities add up to {self.total}, expected a positive number")
        found = np.zeros(len(prefix_sums), np.int64)
        _descend(self.nodes, self._levels, prefix_sums.copy(), found)
        return found


@compiled
def _add_up(nodes: np.ndarray, levels: np.ndarray, leaves: np.ndarray) -> None:
    """All sums above these leaves."""
    above = leaves.copy()
    for level in range(1, len(levels)):
        for i in range(len(above)):
            above[i] //= BRANCHES
            first = levels[level - 1] + above[i] * BRANCHES
            total = 0.0
            for child in range(first, first + BRANCHES):
                total += nodes[child]
            nodes[levels[level] + above[i]] = total


@compiled
def _descend(nodes: np.ndarray, levels: np.ndarray, rest: np.ndarray, found: np.ndarray) -> None:
    """From the root, all of `found`, to the leaves. rest: of each prefix sum, less what lies before
    its node; overwritten."""
    for level in range(len(levels) - 2, -1, -1):
        for i in range(len(found)):
            first = levels[level] + found[i] * BRANCHES
            end, before, child = 0.0, 0.0, 0
            for j in range(BRANCHES):  # no `break`: what to do next must not wait for memory
                end += nodes[first + j]
                if end <= rest[i]:
                    before = end
                    child = j + 1
            if child == BRANCHES:  # beyond the last one, by rounding: so it is all the way down
                before = -np.inf
            while child == BRANCHES or nodes[first + child] == 0.0:
                child -= 1
            found[i] = found[i] * BRANCHES + child
            rest[i] -= before


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
