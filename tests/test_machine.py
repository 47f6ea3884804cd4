"""A container's limits are this machine's limits."""

from pathlib import Path

import psutil
import pytest

from common import machine


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version 2 tree in which this process is in /job/run."""
    (tmp_path / "cgroups/job/run").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/job/run\n")
    monkeypatch.setattr(machine, "_OWN_GROUPS", own)
    return tmp_path / "cgroups"


def test_without_limits_the_machine_is_the_limit(cgroups: Path) -> None:
    (cgroups / "job/run/cpu.max").write_text("max 100000\n")
    (cgroups / "job/run/memory.max").write_text("max\n")
    (cgroups / "job/run/memory.current").write_text("5000\n")
    assert machine.cores(cgroups) == machine.cores(Path("/nowhere"))
    assert machine.available_memory_bytes(cgroups) > 1 << 20


def test_the_tightest_group_above_counts(cgroups: Path) -> None:
    (cgroups / "job/cpu.max").write_text("50000 100000\n")
    (cgroups / "job/run/cpu.max").write_text("400000 100000\n")
    assert machine.cores(cgroups) == 1
    (cgroups / "job/memory.max").write_text("1000000\n")
    (cgroups / "job/memory.current").write_text("700000\n")
    (cgroups / "job/memory.stat").write_text("anon 500000\ninactive_file 150000\nactive_file 1\n")
    assert machine.available_memory_bytes(cgroups) == 300_000 + 150_001


def test_version_1_limits_count_too(cgroups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/box\n1:cpu:/\n")
    (cgroups / "memory/box").mkdir(parents=True)
    (cgroups / "cpu").mkdir()
    (cgroups / "memory/box/memory.limit_in_bytes").write_text("2000\n")
    (cgroups / "memory/box/memory.usage_in_bytes").write_text("500\n")
    (cgroups / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (cgroups / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.available_memory_bytes(cgroups) == 1_500
    assert machine.cores(cgroups) == 1
    (cgroups / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (cgroups / "memory/box/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.available_memory_bytes(cgroups) <= psutil.virtual_memory().total
    assert machine.cores(cgroups) == machine.cores(Path("/nowhere"))


def test_a_cpu_multiplies_bfloat16_when_its_description_says_so(tmp_path: Path) -> None:
    for name, flags, expected in (
        ("zen4", "fma avx512f avx512_bf16", True),
        ("zen3", "fma avx2", False),
        ("xeon", "amx_bf16 amx_tile", True),
    ):
        (tmp_path / name).write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
        assert machine.multiplies_bfloat16(tmp_path / name) is expected
    assert machine.multiplies_bfloat16(tmp_path / "nowhere") is False
