"""Samples per insert: how fast learning may run against acting. Pure arithmetic on counters.

The promise, with I = transitions inserted, S = transitions sampled, m = learning_starts,
r = samples_per_insert, t = tolerance (in samples), once I >= m:

    S <= r * (I - m) + batch      and      r * (I - m) - S <= t  (+ what one chunk adds)

The learner may not sample past the first bound, the actors may not insert past the second. Both
cannot forbid at once because t >= r * chunk (Config asks for more), so they never deadlock.
After the rate limiters of Reverb (Cassirer et al. 2021, section 3.3).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limiter:
    """samples_per_insert r, tolerance_samples t, learning_starts_transitions m."""

    samples_per_insert: float
    tolerance_samples: float
    learning_starts_transitions: int

    def may_sample(self, inserted: int, sampled: int) -> bool:
        """May a batch be drawn now?"""
        if inserted < self.learning_starts_transitions:
            return False
        return sampled <= self.samples_per_insert * (inserted - self.learning_starts_transitions)

    def insert_limit(self, sampled: int) -> float:
        """Transitions that may have been inserted in all, given what was sampled."""
        ahead = (sampled + self.tolerance_samples) / self.samples_per_insert
        return self.learning_starts_transitions + ahead
