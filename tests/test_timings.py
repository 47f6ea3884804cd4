"""Where a process's time goes."""

from types import SimpleNamespace

import pytest

from common.timings import Timings


def test_shares_are_of_the_time_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]
    monkeypatch.setattr("common.timings.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    timings = Timings()

    def spend(name: str, seconds: float) -> None:
        with timings.section(name):
            clock[0] += seconds

    spend("train", 1.0)
    spend("sample", 1.0)
    spend("train", 4.0)
    clock[0] += 2.0
    assert timings.age_seconds == 8.0
    assert timings.fractions() == {"train": 0.625, "sample": 0.125, "other": 0.25}
    assert timings.age_seconds == 0.0
    spend("sample", 3.0)
    assert timings.fractions() == {"sample": 1.0, "other": 0.0}


def test_a_section_that_fails_took_its_time_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("common.timings.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    timings = Timings()
    with pytest.raises(ZeroDivisionError), timings.section("train"):
        clock[0] = 5.0
        _ = 1 / 0
    assert timings.fractions() == {"train": 1.0, "other": 0.0}
