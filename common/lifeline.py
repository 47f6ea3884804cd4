"""What a child process needs of its parent: to die with it, to show life, to be told to stop."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

# A loop that turns every second and paused for so long was itself suspended, perhaps with its
# peers: it must not take their silence for death.
AWAY_SECONDS = 5.0
ECHO_SECONDS = 0.1  # `timeout` signals the process, then its group: that is one request, not two


def die_with_parent(parent_pid: int) -> None:
    """Tie this process's life to its parent's; call it first thing in a child."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the call above: no signal will come
        os._exit(1)


class Heartbeats:
    """Shared memory with one u64 per slot, a child's or another's that is told of: the time of its
    last beat, 0 before the first.

    A beat is one aligned 8-byte store and no system call; CLOCK_MONOTONIC is the same clock in
    every process of a machine, so the reader may subtract.
    """

    def __init__(self, path: Path, *, owner: bool, descriptor: int | None = None) -> None:
        self._path, self._owner, self._descriptor = path, owner, descriptor
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._view = memoryview(self._memory)
        self._beats = self._view.cast("Q")

    @classmethod
    def create(cls, path: Path, slots: int) -> Heartbeats:
        """The supervisor's side; path, by which its children find it, goes with its close().

        In memory, not on the disk: where that is full a store into a mapped file may be a SIGBUS
        (on btrfs, for one, which never writes in place).
        """
        path.unlink(missing_ok=True)  # truncated, it would be a SIGBUS to who still maps it
        zeros = bytes(8 * slots)
        descriptor = _link_to_memory(path, zeros)
        if descriptor is None:
            path.write_bytes(zeros)
        return cls(path, owner=True, descriptor=descriptor)

    @classmethod
    def open(cls, path: Path) -> Heartbeats:
        """A child's side."""
        return cls(path, owner=False)

    def beat(self, slot: int) -> None:
        self._beats[slot] = time.monotonic_ns()

    def age_seconds(self, slot: int) -> float:
        """Seconds since the last beat; infinite before the first."""
        last = self._beats[slot]
        return (time.monotonic_ns() - last) / 1e9 if last else math.inf

    def reset(self, slot: int) -> None:
        self._beats[slot] = 0

    def close(self) -> None:
        self._beats.release()
        self._view.release()
        self._memory.close()
        if self._owner:
            with contextlib.suppress(OSError):  # gone, or the disk is
                self._path.unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)


def _link_to_memory(path: Path, content: bytes) -> int | None:
    """Makes path a link to memory that this process holds. -> its descriptor; None where there is
    none to be had: not on Linux, on a file system without links, with somebody else's /proc."""
    if sys.platform != "linux":
        return None
    descriptor = None
    try:
        descriptor = os.memfd_create(path.name)
        os.write(descriptor, content)
        path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    except (OSError, AttributeError):  # Pythons that were built for old systems lack memfd_create
        pass
    path.unlink(missing_ok=True)
    if descriptor is not None:
        os.close(descriptor)
    return None


def stop_signals() -> list[signal.Signals]:
    """What asks for an orderly end; a terminal that closes does too, but for `nohup`."""
    hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangup else [])]


class StopSignal:
    """The first of these signals asks for an orderly end; `reason` says so from then on.

    A second SIGINT, unless it is the echo of the first, acts as if there were no handler, for
    whoever does not want to wait; a second SIGTERM changes nothing (schedulers send it to every
    process of a job, and often twice).
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.reason = ""
        for one in signals:
            signal.signal(one, self._set)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.reason = "Told to stop."
        if signum == signal.SIGINT:
            _let_echo_pass(signum)
            signal.signal(signum, signal.SIG_DFL)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """A signal's handler: raises KeyboardInterrupt, and for the signal's echo not again."""
    _let_echo_pass(signum)
    signal.signal(signum, interrupt)
    raise KeyboardInterrupt


def _let_echo_pass(signum: int) -> None:
    signal.signal(signum, signal.SIG_IGN)
    time.sleep(ECHO_SECONDS)
