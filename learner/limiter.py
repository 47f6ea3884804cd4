"""Samples per insert: how fast learning may run against acting. Pure arithmetic on counters.

The promise, with I = transitions inserted, S = transitions sampled, m = learning_starts,
r = samples_per_insert, t = tolerance (in samples), once I >= m:

    S <= r * (I - m) + batch      and      r * (I - m) - S <= t  (+ what one chunk adds)

The learner may not sample past the first bound, the actors may not insert past the second. Both
cannot forbid at once: where the learner may not sample, S > r * (I - m), so the actors have some
room, and room for a part of a chunk is granted as a whole one (`Sessions.grant`).
After the rate limiters of Reverb (Cassirer et al. 2021, section 3.3).

When r changes on the way, r * (I - m) becomes the sum of the ratios at which each transition was
inserted. Credit is not withdrawn: after r rises, actors may exceed the second bound by what was
granted before, at most a window of chunks each.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limiter:
    """samples_per_insert r, tolerance_samples t, learning_starts_transitions m.

    carried_samples: sum over what was inserted at other ratios of (its ratio - r).
    """

    samples_per_insert: float
    tolerance_samples: float
    learning_starts_transitions: int
    carried_samples: float = 0.0

    def may_sample(self, inserted: int, sampled: int) -> bool:
        """May a batch be drawn now?"""
        if inserted < self.learning_starts_transitions:
            return False
        return sampled <= self._earned(inserted)

    def insert_limit(self, sampled: int) -> float:
        """Transitions that may have been inserted in all, given what was sampled."""
        ahead = (sampled + self.tolerance_samples - self.carried_samples) / self.samples_per_insert
        return self.learning_starts_transitions + ahead

    def at_ratio(self, samples_per_insert: float, inserted: int) -> "Limiter":
        """The same with another r for what is inserted from now on."""
        past = max(inserted - self.learning_starts_transitions, 0)
        carried = self.carried_samples + (self.samples_per_insert - samples_per_insert) * past
        return replace(self, samples_per_insert=samples_per_insert, carried_samples=carried)

    def _earned(self, inserted: int) -> float:
        past = inserted - self.learning_starts_transitions
        return self.samples_per_insert * past + self.carried_samples
