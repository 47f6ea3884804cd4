"""Bad links, late senders, mismatches, crowds."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from common import messages
from common.config import Config
from common.dealer import ActorEndpoint
from common.errors import Refused
from common.keys import create_keys, load_actor_keys
from common.lifeline import Heartbeats
from common.messages import PROTOCOL, Ack, Type, Weights
from common.network import network_for, state_size
from common.router import LearnerEndpoint
from learner.replay import planned_bytes
from tests.builders import config
from tests.drills.endpoint import WEIGHTS_SIZE
from tests.drills.peers import SMALL, HonestActor, Proxy, RemoteLearner
from tests.drills.system import System
from tests.running import ROOT, Awake, free_address, until


def bad_links(folder: Path, long: bool) -> dict[int, str]:
    """Row 8: resets every 0.4 s, lost answers, a black hole; row 2: late chunks of one replaced."""
    create_keys(folder / "keys")
    seen: dict[int, str] = {}
    for keys in ("", str(folder / "keys")) if long else ("",):
        with_keys = " with keys" if keys else ""
        for row, text in bad_link(folder, keys, *((60, 30) if long else (4, 9))).items():
            seen[row] = f"{seen[row]};{with_keys}: {text}" if row in seen else text
    return seen


def bad_link(folder: Path, keys: str, reset_seconds: float, hole_seconds: float) -> dict[int, str]:
    """keys: a folder, or empty."""
    ours = load_actor_keys(Path(keys)) if keys else None
    # Room for two windows. One stays with the first actor, which ends without a word, the other is
    # the second's: who replaces that one can only be served with what it had.
    room = 2.0 * SMALL.window_chunks * SMALL.chunk_transitions
    settings = dataclasses.replace(SMALL, samples_per_insert_tolerance=room)
    with (
        RemoteLearner(folder, settings, keys) as learner,
        contextlib.closing(Proxy(learner.address)) as proxy,
    ):
        with HonestActor(proxy.address, rate=200, keys=ours) as actor:
            end, cuts = time.monotonic() + reset_seconds, 0
            while time.monotonic() < end:
                time.sleep(0.4)
                proxy.cut()
                cuts += 1
            sent_by_then = actor.sent
            until(lambda: actor.sent > sent_by_then + 20, 30)  # connected again
            proxy.deaf.set()  # what arrives is not acknowledged: it is sent again, for nothing
            time.sleep(0.5)  # what came again after the last reset is told by now
            deaf, again = time.monotonic(), learner.stats["duplicates"]
            until(lambda: learner.stats["duplicates"] > again + 1, 30)
            deaf_seconds = 0.5 + time.monotonic() - deaf
            proxy.deaf.clear()
            proxy.hole.set()
            time.sleep(hole_seconds)
            proxy.hole.clear()
            before = actor.sent
            until(lambda: actor.sent > before + 20, 60)
            sent = actor.finish()
            until(lambda: learner.taken_of(0) == sent, 10)
        with HonestActor(proxy.address, actor_id=1, keys=ours) as old:
            until(lambda: learner.taken_of(1), 10)
            proxy.hole.set()
            awake = Awake()
            with HonestActor(learner.address, actor_id=1, sender=2, keys=ours):
                until(lambda: awake.look() and learner.taken_of(2), 10, 0.01)
                served = awake.look()
                taken, refused = learner.taken_of(1), learner.stats["refused"]
                proxy.hole.clear()
                until(lambda: isinstance(old.error, Refused), 20)
                until(lambda: learner.stats["refused"] > refused, 10)
                late = learner.stats["refused"] - refused
                assert learner.taken_of(1) == taken, "late chunks were taken"
        duplicates = learner.stats["duplicates"]
    assert sent_by_then > 0 and duplicates > 0, "the link was not as bad as it should have been"
    assert served < 1.0, f"a replacement waited {served:.1f} s"
    return {
        2: f"an actor came back from behind a hole when another had its number: {late} late "
        "messages refused, no chunk taken",
        8: f"{cuts} resets, {deaf_seconds:.1f} s of lost answers and a {hole_seconds:g} s hole: "
        f"{sent:,} chunks sent, {sent:,} taken, each once and in order ({duplicates} that came "
        f"again were recognised); beside a hole the replacement was served after {served:.2f} s",
    }


def mismatches(folder: Path, long: bool) -> dict[int, str]:
    """Row 12: real actor processes of another game, n, gamma, action count and version; NaN."""
    run_dir = folder / "run"
    run_dir.mkdir()
    with RemoteLearner(folder) as learner, HonestActor(learner.address, actor_id=1, rate=20):
        ours = config(samples_per_insert=1.0, window_chunks=8, bind=learner.address)
        cases: list[tuple[dict[str, Any], int, str]] = [
            ({"env": "tests.stamped:Stamped-v0"}, PROTOCOL, "env is"),
            ({"n_actions": 4}, PROTOCOL, "n_actions is 4"),
            ({"n_step": 2}, PROTOCOL, "n_step is 2"),
            ({"gamma": 0.5}, PROTOCOL, "gamma is 0.5"),
            ({}, PROTOCOL + 1, f"protocol version {PROTOCOL + 1}, expected {PROTOCOL}"),
        ]
        for other, version, named in cases if long else cases[4:]:
            refused_by_name(run_dir, dataclasses.replace(ours, **other), version, named)
        before = learner.taken_of(1)
        until(lambda: learner.taken_of(1) > before + 10, 10)
    weights_of_nan(run_dir)
    stale_weights()
    place = folder / "nan"
    place.mkdir()
    faults = {"STAMPED_FAULT": "nan", "STAMPED_FAULT_STEPS": "50"}
    with System(place, actors=1, environment=faults) as system:
        assert system.process.wait(90) == 2, system.text
        assert "Stamped gave a reward of nan" in system.text
        assert "it is not restarted" in system.text and "Traceback" not in system.text
    return {
        12: f"{len(cases if long else cases[4:])} mismatches refused by name, exit code 3; weights "
        "that are NaN: the same, not restarted; a game that rewards NaN: the same, exit code 2; a "
        "stale version is not taken; the learner went on"
    }


def refused_by_name(run_dir: Path, settings: Config, version: int, named: str) -> None:
    (run_dir / "config.json").write_text(settings.to_json())
    code, said = actor_process(run_dir, version)
    assert code == 3, said
    assert named in said and "Traceback" not in said, said


def actor_process(run_dir: Path, version: int) -> tuple[int, str]:
    """`launch.py actor` as the supervisor would start it, speaking another protocol version."""
    code = (
        "import sys, common.messages as m, launch\n"
        f"m.PROTOCOL = m.encode.__kwdefaults__['protocol'] = {version}\n"
        f"sys.exit(launch.main(['actor', {str(run_dir)!r}, {str(os.getpid())!r}, '0', '0']))"
    )
    with contextlib.closing(Heartbeats.create(run_dir / "heartbeats", 2)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    return done.returncode, done.stdout + done.stderr


def weights_of_nan(run_dir: Path) -> None:
    """A real actor process, and a learner that publishes NaN."""
    settings = config(bind=free_address())
    learner = LearnerEndpoint(settings, settings.bind)
    size = state_size(network_for(settings))
    learner.publish(Weights(7, np.full(size, np.nan, np.float32)))
    learner.start(0)
    try:
        refused_by_name(run_dir, settings, PROTOCOL, "weights version 7 are not finite")
    finally:
        learner.stop()


def stale_weights() -> None:
    """A learner that sends version 4 after version 5."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as learner:
        learner.linger, learner.rcvtimeo = 0, 10_000
        port = learner.bind_to_random_port("tcp://127.0.0.1")
        actor = ActorEndpoint(SMALL, f"tcp://127.0.0.1:{port}", 0, WEIGHTS_SIZE)
        with contextlib.closing(actor):
            route = learner.recv_multipart()[0]

            def send(version: int, env_steps: int) -> None:
                ack = Ack(0, 0, 5, env_steps)
                weights = Weights(version, np.zeros(WEIGHTS_SIZE, np.float32))
                learner.send_multipart([route, messages.encode_weights(weights)])
                learner.send_multipart([route, messages.encode_ack(Type.ACK, actor.session, ack)])

            welcome = messages.encode_ack(Type.WELCOME, actor.session, Ack(0, 0, 5, 0))
            learner.send_multipart([route, welcome])
            actor.handshake(10)
            send(5, 1)
            assert until(actor.poll, 10).version == 5
            send(4, 2)

            def heard() -> bool:  # the ACK that came after the weights
                assert actor.poll() is None, "an older version was taken"
                return actor.env_steps == 2

            until(heard, 10)


def crowd(folder: Path, long: bool) -> dict[int, str]:
    """Row 16: 64 actors against a learner that is made ten times slower than it can be."""
    seconds, actors = 60 if long else 5, 64
    settings = config(samples_per_insert=1.0, window_chunks=8, actors=actors)
    chunk_bytes = (settings.chunk_transitions + 3 + settings.n_step) * 7056
    with RemoteLearner(folder, settings) as learner:
        memory = learner.stats["rss"]
        with contextlib.ExitStack() as stack:
            for i in range(actors):
                stack.enter_context(HonestActor(learner.address, actor_id=i))
            until(lambda: len(learner.stats["by_sender"]) == actors, 60)
            at_best = learner.rate(3.0)
            learner.slow_down(10 / at_best)
            time.sleep(1.0)  # what is told from now on is told by a slow learner
            at_first, began = learner.stats, time.monotonic()
            enough = at_first["chunks"] + 6 * actors
            until(lambda: learner.stats["chunks"] >= enough, 120)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            now, elapsed = learner.stats, time.monotonic() - began
            slowed = (now["chunks"] - at_first["chunks"]) / elapsed
            served = [n - at_first["by_sender"][i] for i, n in now["by_sender"].items()]
            grown = learner.most_rss - memory
            learner.close_input()
    windows = actors * settings.window_chunks * chunk_bytes
    most = 1.1 * (windows + planned_bytes(settings))
    assert slowed < 0.15 * at_best, "it was not slowed down"
    assert grown <= most, f"memory grew by {grown:,} B, at most {most:,.0f} B were to be"
    assert min(served) >= 0.5 * max(served), f"served {min(served)} to {max(served)} chunks"
    return {
        16: f"{actors} actors, a learner slowed from {at_best:.0f} to {slowed:.0f} chunks/s for "
        f"{elapsed:.0f} s: memory +{grown / 2**20:.0f} MB (windows, replay and 10 %: "
        f"{most / 2**20:.0f} MB), least over most served {min(served) / max(served):.2f}"
    }
