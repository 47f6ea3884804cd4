"""Being told to stop: once, by a signal that may come twice."""

import signal

import pytest

from common import lifeline
from common.lifeline import StopSignal, interrupt


@pytest.fixture
def echoes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`timeout` signals a process, and a moment later its group."""
    heard: list[float] = []

    def echo(seconds: float) -> None:
        heard.append(seconds)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lifeline.time, "sleep", echo)
    return heard


def test_the_echo_of_an_interrupt_is_not_a_second_one(echoes: list[float]) -> None:
    stop = StopSignal(signal.SIGINT, signal.SIGTERM)
    assert not stop.reason
    signal.raise_signal(signal.SIGINT)
    assert stop.reason
    assert echoes == [lifeline.ECHO_SECONDS]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a second one ends the process


def test_a_terminate_is_a_wish_however_often_it_comes() -> None:
    stop = StopSignal(signal.SIGINT, signal.SIGTERM)
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert stop.reason


def test_an_interrupt_is_raised_once_with_its_echo_and_again_for_the_next(
    echoes: list[float],
) -> None:
    signal.signal(signal.SIGINT, interrupt)
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert len(echoes) == number
