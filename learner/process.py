"""The learner process: take chunks, learn, publish weights, keep records."""

import time
from collections.abc import Callable
from pathlib import Path

from common.address import endpoint
from common.compiled import load_compiler
from common.config import Config
from common.console import say
from common.errors import INTERRUPTED
from common.keys import load_learner_keys
from common.lifeline import StopSignal
from common.messages import Chunk
from common.router import LearnerEndpoint, TransportDied
from learner.learner import Learner, PlayGreedily

# From one version of the weights to the next that actors are given, at least: each costs them some
# milliseconds (docs/performance.md, "What was tried").
PUBLISH_SECONDS = 0.1


def run_learner(
    config: Config,
    run_dir: Path,
    *,
    resume: bool,
    started: float,
    stop: StopSignal,
    play_greedily: PlayGreedily,
    beat: Callable[[], None],
    call_late_actors: Callable[[], None],
) -> int:
    """The learner process, until solved, a limit or `stop`. -> exit code.

    started: the moment of the command (time.monotonic()); play_greedily: what confirms that the run
    is solved; beat: called every turn; call_late_actors: called every turn while the game is
    mastered.
    """
    transport = open_transport(config, run_dir)  # first: an address in use leaves no trace
    try:
        learner = Learner(config, run_dir, resume, started)
        transport.publish(learner.weights())
        transport.set_insert_limit(learner.insert_limit(), learner.inserted)
        transport.start(learner.inserted)
        load_compiler()  # while actors begin
        reason = learn(learner, transport, stop, play_greedily, beat, call_late_actors)
    except TransportDied:  # what was learned until then is whole
        save_last(learner, beat)
        learner.records.metrics.close()
        raise
    finally:
        transport.stop()
    for chunk in last_chunks(transport):
        learner.insert(chunk)
        learner.confirm(play_greedily, stop, beat)
    reason = learner.records.ending.finished(learner.inserted, reason)  # they may have solved it
    return finish(learner, transport, reason, stop, beat)


def learn(
    learner: Learner,
    transport: LearnerEndpoint,
    stop: StopSignal,
    play_greedily: PlayGreedily,
    beat: Callable[[], None],
    call_late_actors: Callable[[], None],
) -> str:
    """The loop. -> why it ended."""
    reason, ending = "", learner.records.ending
    published, next_publish = learner.weights_version, 0.0
    while not reason:
        beat()
        if learner.mastered:
            call_late_actors()
        for chunk in transport.drain():
            learner.insert(chunk)
            if ending.looks_solved:  # nobody shall play for a learner that stands still
                transport.set_insert_limit(learner.inserted, learner.inserted)
                learner.confirm(play_greedily, stop, beat)
        if learner.may_sample():
            learner.update()
        else:
            with learner.timings.section("wait"):
                transport.wait(0.1)
        if learner.weights_version > published and time.monotonic() >= next_publish:
            with learner.timings.section("publish"):
                transport.publish(learner.weights())
            published, next_publish = learner.weights_version, time.monotonic() + PUBLISH_SECONDS
        transport.set_insert_limit(learner.insert_limit(), learner.inserted)
        learner.records.tick(learner, transport)
        learner.save_when_due()
        reason = ending.finished(learner.inserted, stop.reason)
    return reason


def finish(
    learner: Learner,
    transport: LearnerEndpoint | None,
    reason: str,
    stop: StopSignal,
    beat: Callable[[], None] = lambda: None,
) -> int:
    """The last checkpoint and result.json. -> exit code.

    reason: why the run ended, stop's or another: a stop that comes while the end is saved did not
    end it.
    """
    saved = save_last(learner, beat)
    if not (learner.records.finish(learner, transport, reason) and saved):
        return 1
    return INTERRUPTED if reason == stop.reason else 0


def save_last(learner: Learner, beat: Callable[[], None]) -> bool:
    """-> is it saved?"""
    learner.save_now(beat)
    if error := learner.checkpoints.error:
        say(f"The final checkpoint could not be written: {error}; those before it are kept.")
    return not error


def last_chunks(transport: LearnerEndpoint) -> list[Chunk]:
    """What came in while the transport was stopped: acknowledged, so ours."""
    try:
        return transport.drain()
    except TransportDied as died:  # at the very end, where nothing more was wanted of it
        say(f"The transport did not end in order: {died.__cause__!r}.")
        return []


def open_transport(config: Config, run_dir: Path) -> LearnerEndpoint:
    keys = load_learner_keys(Path(config.keys)) if config.keys else None
    return LearnerEndpoint(config, endpoint(config, run_dir), keys)
