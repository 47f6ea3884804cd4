"""`launch.py` whose learner is watched: what an update takes, and how long its GPU works for it.

`python -m benchmarks.watched FLAGS` is the same program with the same flags; the run folder gets a
`gpu.json` once the updates are over that are watched:

    1. WARM_UP_UPDATES that do not count
    2. TIMED_UPDATES against the clock, the time in which too little data had come left out
    3. TRACED_UPDATES under PyTorch's profiler, whose record of the GPU says when anything ran there

A profiler slows the program down, but not what runs on the GPU: so the clock is of 2 and the record
of 3.
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import launch
from common.run_folder import replace_file

WARM_UP_UPDATES, TIMED_UPDATES, TRACED_UPDATES = 300, 1000, 300


@dataclass(frozen=True)
class Told:
    """Of the average update: its time while data suffices, that in which the GPU worked, and the
    kernels and copies that were seen there."""

    wall_seconds: float
    busy_seconds: float
    events: float


def read(run_dir: Path) -> Told | None:
    """What there is to tell, once there is."""
    path = run_dir / "gpu.json"
    return Told(**json.loads(path.read_text())) if path.exists() else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans (begin, end): what runs side by side counts once."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length


class Trace:
    """The profiler, from now on."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self._profile.start()

    def end(self) -> tuple[float, int]:
        """-> seconds in which any kernel ran or anything was copied, and how many did."""
        from torch.autograd import DeviceType  # type: ignore[attr-defined]

        self._profile.stop()
        events = self._profile.events()  # type: ignore[no-untyped-call]
        spans = [e.time_range for e in events if e.device_type == DeviceType.CUDA]
        return covered((span.start, span.end) for span in spans) / 1e6, len(spans)


def watch_learner() -> None:
    import torch

    from learner import learner

    class WatchedLearner(learner.Learner):
        lacking_seconds = 0.0  # from being told that too little has come to asking again
        asked, sufficed = 0.0, True
        began, wall_seconds = 0.0, 0.0
        trace: Trace

        def may_sample(self) -> bool:
            now = time.perf_counter()
            if not self.sufficed:
                self.lacking_seconds += now - self.asked
            self.sufficed = super().may_sample()
            if not self.sufficed:
                torch.cuda.synchronize()  # an update that still runs there is no lack of data
                now = time.perf_counter()
            self.asked = now
            return self.sufficed

        def clock(self) -> float:
            """Seconds in which data sufficed, the GPU's work done."""
            torch.cuda.synchronize()
            return time.perf_counter() - self.lacking_seconds

        def update(self) -> None:
            super().update()
            done = self.updates - WARM_UP_UPDATES
            if done == 0:
                self.began = self.clock()
            elif done == TIMED_UPDATES:
                self.wall_seconds = self.clock() - self.began
                self.trace = Trace()
            elif done == TIMED_UPDATES + TRACED_UPDATES:
                torch.cuda.synchronize()
                busy, events = self.trace.end()
                told = Told(
                    self.wall_seconds / TIMED_UPDATES,
                    busy / TRACED_UPDATES,
                    events / TRACED_UPDATES,
                )
                replace_file(self.run_dir / "gpu.json", json.dumps(asdict(told)).encode())

    learner.Learner = WatchedLearner  # type: ignore[misc]


def main(words: list[str]) -> int:
    launch.command = lambda words: [sys.executable, "-m", "benchmarks.watched", *words]
    if words[0] == "learner":
        watch_learner()
    return launch.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
