"""What this process may use of the machine: cores and memory, a container's limits included."""

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores(cgroups: Path = _CGROUPS) -> int:
    """Cores that this process may use: its affinity, or its container's CPU quota if that is less.

    `docker run --cpus 2` leaves the affinity at every core of the host.
    """
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quotas = [math.ceil(quota) for group in _groups(cgroups) if (quota := _cpu_quota(group))]
    return min([affinity, *quotas])


def available_memory_bytes(cgroups: Path = _CGROUPS) -> int:
    """Memory that this process may still take: the machine's, or what its container leaves."""
    import psutil

    rooms = [room for group in _groups(cgroups) if (room := _memory_room(group)) is not None]
    return min([int(psutil.virtual_memory().available), *rooms])


@functools.cache
def multiplies_bfloat16(description: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for it (Zen 4, Cooper Lake, Sapphire Rapids, and later).

    Others could only imitate it, at a loss.
    """
    return bool({"avx512_bf16", "amx_bf16"} & set(_words(description)))


def _groups(cgroups: Path) -> Iterator[Path]:
    """The control groups that bind this process: its own and those above, as far as visible.

    A line of /proc/self/cgroup is `id:controllers:path`; version 2 names no controllers.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = cgroups / controllers
        group = root / path.lstrip("/")
        yield from [group, *(parent for parent in group.parents if parent.is_relative_to(root))]


def _cpu_quota(group: Path) -> float | None:
    """Cores' worth of time that a group grants, None: no limit."""
    if (both := _words(group / "cpu.max")) and both[0] != "max":
        return int(both[0]) / int(both[1])
    quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _memory_room(group: Path) -> int | None:
    """Bytes that a group may still take, files that can be dropped not counted; None: no limit."""
    limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
    used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
    if not limit or not used or limit[0] == "max":
        return None
    words = _words(group / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=True))
    droppable = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return max(0, int(limit[0]) - int(used[0]) + droppable)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
