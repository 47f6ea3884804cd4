"""Named timings: where a process's time goes."""

import collections
import contextlib
import time
from collections.abc import Iterator


class Timings:
    """Seconds spent in named sections; what is not in one is `other`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    @property
    def age_seconds(self) -> float:
        """Since the last `fractions`."""
        return time.perf_counter() - self._since

    def fractions(self) -> dict[str, float]:
        """Share of the time since the last call, by section; starts anew."""
        now = time.perf_counter()
        total = max(now - self._since, 1e-9)
        shares = {name: seconds / total for name, seconds in self.seconds.items()}
        shares["other"] = max(0.0, 1.0 - sum(shares.values()))
        self.seconds.clear()
        self._since = now
        return shares
