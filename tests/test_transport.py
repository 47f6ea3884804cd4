"""The ROUTER and the DEALERs, real sockets in one process: credit, order, fencing, keys."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

from common import messages
from common.address import check_bind, connect_endpoint, endpoint, ipc_endpoint, remove_socket
from common.config import Config
from common.dealer import ActorEndpoint, LearnerGone
from common.errors import ConfigError, Refused
from common.keys import (
    create_keys,
    load_actor_keys,
    load_learner_keys,
)
from common.lifeline import Heartbeats
from common.messages import Chunk, Header, Spec, Type, Weights
from common.router import LearnerEndpoint, TransportDied
from common.sessions import Session
from tests.builders import chunk_of, config
from tests.running import until

SIZE = 10  # floats in the weights of these tests


def eventually(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    return until(what, seconds, 0.005)


@contextlib.contextmanager
def stopping(learner: LearnerEndpoint) -> Iterator[None]:
    try:
        yield
    finally:
        learner.stop()


class Pair:
    """A learner's endpoint and as many actors' as asked for."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self.config = config(**overrides)
        self.address = ipc_endpoint(folder / "ipc")
        self.learner = LearnerEndpoint(self.config, self.address)
        self.learner.start(0)
        self.actors: list[ActorEndpoint] = []
        self.spec = Spec.of(self.config)

    def actor(self, actor_id: int = 0, with_config: Config | None = None) -> ActorEndpoint:
        actor = ActorEndpoint(with_config or self.config, self.address, actor_id, SIZE)
        self.actors.append(actor)
        actor.handshake(10)
        return actor

    def chunk(self, stamp: int) -> Chunk:
        return chunk_of(self.spec, 16, stamp)

    def taken(self, count: int) -> list[int]:
        """First returns of the next `count` chunks that the learner takes."""
        got: list[int] = []

        def enough() -> bool:
            for actor in self.actors:
                actor.poll()
            got.extend(int(c.transitions["n_step_return"][0]) for c in self.learner.drain())
            return len(got) >= count

        eventually(enough)
        return got

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
        self.learner.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()


@pytest.fixture
def actors_time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an actor repeats or asks because time has passed, it never does."""
    monkeypatch.setattr("common.dealer.time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.mark.usefixtures("actors_time_stands_still")
def test_chunks_arrive_once_and_in_order(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    actor = pair.actor()
    for i in range(40):
        actor.send(pair.chunk(i))
    assert pair.taken(40) == list(range(40))
    eventually(lambda: actor.poll() or actor.unacknowledged == 0)
    assert pair.learner.stats.duplicates == 0


def test_no_more_is_taken_than_the_limit_allows_and_more_when_it_rises(pair: Pair) -> None:
    actor = pair.actor()
    pair.learner.set_insert_limit(5 * 16, 0)
    sender = threading.Thread(target=lambda: [actor.send(pair.chunk(i)) for i in range(12)])
    sender.start()
    got: list[int] = []

    def drained(count: int) -> bool:
        got.extend(int(c.transitions["n_step_return"][0]) for c in pair.learner.drain())
        return len(got) >= count

    eventually(lambda: drained(5))
    assert len(got) == 5
    assert sender.is_alive()
    pair.learner.set_insert_limit(12 * 16, 0)
    eventually(lambda: drained(12))
    sender.join(10)
    assert got == list(range(12))


@pytest.mark.usefixtures("actors_time_stands_still")
def test_an_actor_whose_queue_was_full_hears_all_the_same_once_there_is_room(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, full = pair.actor(), threading.Event()
    send = pair.learner._send
    monkeypatch.setattr(
        pair.learner, "_send", lambda *message: not full.is_set() and send(*message)
    )
    pair.learner.set_insert_limit(16, 0)
    eventually(lambda: actor.poll() or actor._granted_seq == 1)
    full.set()
    actor.send(pair.chunk(0))
    assert pair.taken(1) == [0]
    assert actor.unacknowledged == 1
    full.clear()
    eventually(lambda: actor.poll() or actor.unacknowledged == 0)  # without a question of its own


@pytest.mark.usefixtures("actors_time_stands_still")
def test_what_is_sent_beyond_the_credit_given_is_not_taken(pair: Pair) -> None:
    actor = pair.actor()
    actor._transmit(messages.encode_chunk(actor.session, 1, pair.chunk(0)))
    actor.report({"play": 1.0})  # behind it, on the same connection
    eventually(lambda: pair.learner.reports[0])
    assert pair.learner.drain() == []
    pair.learner.set_insert_limit(16, 0)
    eventually(lambda: actor.poll() or actor._granted_seq == 1)
    actor.send(pair.chunk(5))
    assert pair.taken(1) == [5]


def test_a_limit_may_fall_and_what_was_granted_stays(pair: Pair) -> None:
    window = pair.config.window_chunks
    actor = pair.actor()
    pair.learner.set_insert_limit(10_000, 0)
    eventually(lambda: actor.poll() or actor._granted_seq == window)
    pair.learner.set_insert_limit(0, 0)
    sender = threading.Thread(target=lambda: [actor.send(pair.chunk(i)) for i in range(window + 1)])
    sender.start()
    got: list[int] = []

    def drained(count: int) -> bool:
        got.extend(int(c.transitions["n_step_return"][0]) for c in pair.learner.drain())
        return len(got) >= count

    eventually(lambda: drained(window))
    eventually(
        lambda: pair.learner._after_grant[1].without_credit
    )  # and after the last one, nothing
    assert sender.is_alive() and got == list(range(window))
    pair.learner.set_insert_limit(16 * (window + 1), 0)
    eventually(lambda: drained(window + 1))
    sender.join(10)


@pytest.mark.usefixtures("actors_time_stands_still")
def test_a_limit_wakes_the_transport_thread_only_where_an_actor_gets_credit_by_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[None] = []
    wake = pair.learner._wake
    monkeypatch.setattr(pair.learner, "_wake", lambda: (woken.append(None), wake()))
    actor = pair.actor()
    pair.learner.set_insert_limit(16, 0)
    eventually(lambda: actor.poll() or actor._granted_seq == 1)
    eventually(lambda: not pair.learner._after_grant[1].without_credit)  # its ACK is sent before
    assert len(woken) == 1
    # The actor has credit, and hears of more with its next ACK.
    pair.learner.set_insert_limit(32, 0)
    actor.send(pair.chunk(0))
    pair.taken(1)
    eventually(lambda: actor.poll() or actor._granted_seq == 2)
    actor.send(pair.chunk(1))
    pair.taken(1)
    eventually(lambda: actor.poll() or not actor.unacknowledged)
    assert len(woken) == 1
    pair.learner.set_insert_limit(48, 0)
    eventually(lambda: actor.poll() or actor._granted_seq == 3)  # not by a ping
    assert len(woken) == 2


def test_a_limit_raised_while_credit_is_given_is_not_missed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = pair.learner._sessions.grant

    def grant_and_raise(transitions: float) -> list[Session]:
        woken = grant(transitions)
        if len(pair.learner._sessions):  # as the training thread might, seeing an older demand
            pair.learner._insert_limit = 16
        return woken

    monkeypatch.setattr(pair.learner._sessions, "grant", grant_and_raise)
    actor = pair.actor()
    assert actor._granted_seq == 1


def test_credit_is_shared_among_actors(pair: Pair) -> None:
    actors = [pair.actor(i) for i in range(4)]
    pair.learner.set_insert_limit(8 * 16, 0)
    for i, actor in enumerate(actors):
        eventually(lambda a=actor: a.poll() or a._granted_seq >= 2)  # type: ignore[misc]
        actor.send(pair.chunk(10 * i))
        actor.send(pair.chunk(10 * i + 1))
    assert sorted(pair.taken(8)) == [0, 1, 10, 11, 20, 21, 30, 31]


def test_newer_weights_reach_the_actor_once(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    actor = pair.actor()
    pair.learner.publish(Weights(3, np.arange(SIZE, dtype=np.float32)))
    actor.send(pair.chunk(0))
    weights = eventually(actor.poll)
    assert weights.version == 3
    assert weights.vector.tolist() == list(range(SIZE))
    actor._transmit(messages.encode(Header(Type.GET_WEIGHTS, actor.session)))  # and again
    actor.send(pair.chunk(1))

    def acknowledged_without_weights() -> bool:
        assert actor.poll() is None
        return not actor.unacknowledged

    eventually(acknowledged_without_weights)


@pytest.mark.usefixtures("actors_time_stands_still")
def test_an_actor_without_credit_hears_of_newer_weights_at_once(pair: Pair) -> None:
    actor = pair.actor()
    pair.learner.publish(Weights(3, np.zeros(SIZE, np.float32)))
    assert eventually(actor.poll).version == 3  # without a question of its own


def test_a_lost_connection_loses_and_repeats_nothing(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    actor = pair.actor()
    for i in range(60):
        actor.send(pair.chunk(i))
        if i % 7 == 3:
            actor._reconnect()  # whatever was in the old socket is gone
            actor.handshake(10)
    assert pair.taken(60) == list(range(60))


def test_a_message_that_vanished_is_sent_again(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    actor = pair.actor()
    real, lost = actor._transmit, []

    def lossy(message: bytes) -> None:
        if len(message) > 10_000 and len(lost) < 3:
            lost.append(message)
        else:
            real(message)

    actor._transmit = lossy  # type: ignore[method-assign]
    for i in range(6):
        actor.send(pair.chunk(i))
    assert pair.taken(6) == list(range(6))
    assert len(lost) == 3


def test_a_second_life_of_an_actor_fences_the_first(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    first = pair.actor(actor_id=5)
    second = pair.actor(actor_id=5)
    with pytest.raises(Refused) as caught:
        first.send(pair.chunk(1))
        eventually(lambda: first.poll() or False, 5)
    assert caught.value.exit_code == 1
    pair.actors.remove(first)
    first.close()
    second.send(pair.chunk(2))
    assert pair.taken(1) == [2]
    assert pair.learner.restarts == 1


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"gamma": 0.5}, "gamma is 0.5 at the actor, 0.99 at the learner"),
        ({"n_step": 1}, "n_step is 1"),
        ({"env": "Other-v0"}, "env is 'Other-v0'"),
        ({"n_actions": 4}, "n_actions is 4"),
    ],
)
def test_an_actor_of_another_configuration_is_refused_by_name(
    pair: Pair, override: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named) as caught:
        pair.actor(with_config=config(**override))
    assert caught.value.exit_code == 3


def test_an_actor_of_another_run_takes_nobodys_place(pair: Pair) -> None:
    """Its learner found the address taken, and ends."""
    pair.learner.set_insert_limit(10_000, 0)
    ours = pair.actor()
    stranger = ActorEndpoint(config(run_id="another"), pair.address, 0, SIZE)
    with contextlib.closing(stranger):
        with pytest.raises(LearnerGone, match="no answer"):
            stranger.handshake(0.5)
        eventually(lambda: pair.learner.stats.refused > 0)
    ours.send(pair.chunk(1))
    assert pair.taken(1) == [1]
    assert pair.learner.restarts == 0


@pytest.mark.parametrize("older", ["actor", "learner"])
def test_an_actor_of_another_protocol_version_is_told_so(
    pair: Pair, older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each side in turn is the one that speaks version 0."""
    real = messages.encode
    side = "common.dealer" if older == "actor" else "common.router"

    def spoken(*args: Any, **kwargs: Any) -> bytes:
        caller = sys._getframe(2).f_globals["__name__"]
        old = {"protocol": 0} if caller == side else {}
        return real(*args, **{**kwargs, **old})

    monkeypatch.setattr(messages, "encode", spoken)
    told = f"protocol version 0, expected {messages.PROTOCOL}: install the same"
    with pytest.raises(Refused, match=told) as caught:
        pair.actor()
    assert caught.value.exit_code == 3


def test_a_bad_chunk_ends_its_session_with_the_reason(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    actor = pair.actor()
    bad = pair.chunk(0)
    bad.transitions["n_step_return"][3] = np.nan
    with pytest.raises(Refused, match="a chunk was refused: a return is not finite"):
        actor.send(bad)
        eventually(lambda: actor.poll() or False, 5)
    eventually(lambda: pair.learner.stats.refused == 1)
    eventually(lambda: pair.learner.alive == 0)


def test_scarce_credit_goes_to_who_waited_longest(pair: Pair) -> None:
    actors = [pair.actor(i) for i in range(3)]
    for actor in actors:  # each has a chunk to send and no credit
        actor._seq += 1
        message = messages.encode_chunk(actor.session, 1, pair.chunk(actor.actor_id))
        actor._window.append((1, message))
    got: list[int] = []
    for chunks in (1, 2, 3):
        pair.learner.set_insert_limit(16 * chunks, 0)
        got += pair.taken(1)
    assert got == [0, 1, 2]


def test_junk_is_counted_and_disturbs_nobody(pair: Pair) -> None:
    pair.learner.set_insert_limit(10_000, 0)
    actor = pair.actor()
    context = zmq.Context()
    with context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 1000)
        stranger.connect(pair.address)
        good = messages.encode_chunk(actor.session + 2, 1, pair.chunk(0))
        for junk in (b"", b"x" * 50, good, good[:100], b"VLY1" + bytes(100)):
            stranger.send(junk)
        stranger.send_multipart([good, good])
        stranger.send(messages.encode(Header(Type.WELCOME, actor.session), [1, 2, 3, 4]))
    context.term()
    for i in range(5):
        actor.send(pair.chunk(i))
    assert pair.taken(5) == list(range(5))
    assert eventually(lambda: pair.learner.stats.refused >= 7)


@pytest.mark.usefixtures("actors_time_stands_still")
def test_a_silent_actor_is_forgotten_and_its_credit_returns(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.learner.set_insert_limit(16, 0)  # room for one chunk only
    silent = pair.actor(0)
    assert eventually(lambda: silent.poll() or silent._granted_seq == 1)
    other = pair.actor(1)
    assert other._granted_seq == 0
    pair.actors.remove(silent)  # nobody polls it any more
    pair.learner._sessions._of_actor[0].last_heard -= 2 * pair.learner._silent_seconds
    eventually(lambda: (other.poll(), pair.learner._wake(), other._granted_seq == 1)[-1])
    silent.close()
    pair.close()


def test_a_learner_is_gone_when_it_was_listened_for_in_vain_and_not_before(pair: Pair) -> None:
    actor = pair.actor()
    actor._last_heard -= 200
    actor._looked -= 200  # both were frozen, perhaps
    actor._keep_house()
    actor._last_heard -= 200
    with pytest.raises(LearnerGone, match="nothing heard of the learner for 120 s"):
        actor._keep_house()


def test_the_end_of_the_run_is_announced(pair: Pair) -> None:
    actor = pair.actor()
    pair.learner.stop()
    with pytest.raises(LearnerGone, match="finished"):
        eventually(actor.poll)
    assert actor.said_goodbye


def test_an_actor_without_a_learner_gives_up_with_a_sentence(tmp_path: Path) -> None:
    actor = ActorEndpoint(config(), ipc_endpoint(tmp_path / "ipc"), 0, SIZE)
    with pytest.raises(LearnerGone, match=r"no answer from ipc://.* in 0\.5 s"):
        actor.handshake(0.5)
    actor.close()


def test_an_actor_that_finds_something_else_there_says_so() -> None:
    """Keys have nothing to do with it where none are used."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def hang_up() -> None:
            server.settimeout(0.1)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    server.accept()[0].close()

        other = threading.Thread(target=hang_up)
        other.start()
        actor = ActorEndpoint(config(), f"tcp://127.0.0.1:{server.getsockname()[1]}", 0, SIZE)
        with pytest.raises(Refused, match="not a learner, or one of them uses keys"):
            actor.handshake(30)
        stop.set()
        other.join()
        actor.close()


def test_a_socket_path_may_be_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    pair = Pair(folder)
    pair.learner.set_insert_limit(100, 0)
    pair.actor().send(pair.chunk(3))
    assert pair.taken(1) == [3]
    pair.close()
    assert list((folder / "ipc").iterdir()) == []


def test_the_socket_folder_is_private_and_left_empty(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    assert (tmp_path / "ipc").stat().st_mode & 0o777 == 0o700
    pair.close()
    assert list((tmp_path / "ipc").iterdir()) == []


def test_a_port_in_use_is_one_sentence() -> None:
    first = LearnerEndpoint(config(), "tcp://127.0.0.1:*")
    bound = first._router.getsockopt_string(zmq.LAST_ENDPOINT)
    with pytest.raises(ConfigError, match=r"Cannot listen on .* in use; choose another --bind"):
        LearnerEndpoint(config(), bound)
    first.stop()


def test_a_socket_file_that_cannot_be_is_one_sentence_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; choose --bind tcp"):
        LearnerEndpoint(config(), f"ipc://{tmp_path}/nowhere/socket")


def test_keys_admit_who_is_authorized_and_nobody_else(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    create_keys(tmp_path / "strangers")
    small = config()
    learner = LearnerEndpoint(small, "tcp://127.0.0.1:*", load_learner_keys(tmp_path / "keys"))
    address = learner._router.getsockopt_string(zmq.LAST_ENDPOINT)
    learner.set_insert_limit(1_000, 0)
    learner.start(0)
    good = load_actor_keys(tmp_path / "keys")
    stranger = load_actor_keys(tmp_path / "strangers")
    stranger = type(stranger)(stranger.secret, stranger.public, good.learner)
    wrong_server = type(good)(good.secret, good.public, stranger.public)
    with stopping(learner):
        for keys, why in (
            (None, "one of them uses keys"),
            (stranger, "not among the learner's authorized"),
            (wrong_server, "does not hold the secret"),
        ):
            with contextlib.closing(ActorEndpoint(small, address, 0, SIZE, keys)) as actor:
                with pytest.raises(Refused, match=why) as caught:
                    actor.handshake(30)
                assert caught.value.exit_code == 4
        assert learner.stats.refused == 0  # nothing of theirs reached the decoder
        with contextlib.closing(ActorEndpoint(small, address, 0, SIZE, good)) as actor:
            actor.handshake(30)
            actor.send(chunk_of(Spec.of(small), 16, 9))
            eventually(learner.drain)


def test_a_session_is_bound_to_the_key_that_opened_it(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    create_keys(tmp_path / "others")
    public = (tmp_path / "others" / "actor.public").read_bytes()
    (tmp_path / "keys" / "authorized" / "other.public").write_bytes(public)
    first = load_actor_keys(tmp_path / "keys")
    other = load_actor_keys(tmp_path / "others")
    other = type(other)(other.secret, other.public, first.learner)
    small = config()
    learner = LearnerEndpoint(small, "tcp://127.0.0.1:*", load_learner_keys(tmp_path / "keys"))
    address = learner._router.getsockopt_string(zmq.LAST_ENDPOINT)
    learner.set_insert_limit(1_000, 0)
    learner.start(0)
    with (
        stopping(learner),
        contextlib.closing(ActorEndpoint(small, address, 0, SIZE, first)) as victim,
        contextlib.closing(ActorEndpoint(small, address, 1, SIZE, other)) as thief,
    ):
        victim.handshake(30)
        thief.handshake(30)
        chunk = chunk_of(Spec.of(small), 16, 9)
        hello = messages.Hello(0, small.agreement())
        for stolen in (
            messages.encode_chunk(victim.session, 1, chunk),
            messages.encode(Header(Type.PING, victim.session)),
            messages.encode_report(victim.session, {"play": 1.0}),
            messages.encode_hello(victim.session, hello),
        ):
            before = learner.stats.refused
            thief._transmit(stolen)
            eventually(lambda n=before: learner.stats.refused > n)
        assert learner.drain() == [] and learner.reports == {0: {}, 1: {}}
        victim.send(chunk)  # its number 1 is still its own
        assert len(eventually(learner.drain)) == 1


def test_keys_made_under_a_lax_umask_are_accepted(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    load_learner_keys(tmp_path / "keys")
    load_actor_keys(tmp_path / "keys")


def test_keys_that_others_could_add_to_are_refused(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    authorized = tmp_path / "keys" / "authorized"
    for path in (authorized, authorized / "actor.public", tmp_path / "keys"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(ConfigError, match=f"Others can write {path}, and so let themselves in"):
            load_learner_keys(tmp_path / "keys")
        path.chmod(mode)
    load_learner_keys(tmp_path / "keys")


def test_secret_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    secret = tmp_path / "keys" / "learner.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="Others can read"):
        load_learner_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="not empty"):
        create_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    "key", [b"x" * 39, b"'" * 40, b"#" * 40, "é".encode() * 20], ids=["39", "'", "#", "é"]
)
def test_a_key_that_is_none_is_refused_in_a_sentence(key: bytes, tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    (tmp_path / "keys" / "learner.public").write_bytes(key)
    with pytest.raises(ConfigError, match=r"learner\.public is not a CURVE key"):
        load_actor_keys(tmp_path / "keys")


def test_nothing_watches_a_connection_that_was_let_in(tmp_path: Path) -> None:
    """Events that nobody reads fill their socket, and libzmq waits for it: for ever, at close."""
    pair = Pair(tmp_path)
    actor = pair.actor()
    assert actor._watch._monitor.closed
    actor._reconnect()
    assert not actor._watch._monitor.closed
    actor.handshake(30)
    assert actor._watch._monitor.closed
    pair.close()


@pytest.mark.parametrize(
    "name",
    ["r" * 90, "训" * 30],
    ids=["long", "long in bytes"],
)
def test_a_run_folder_whose_path_is_long_has_its_socket(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    pair = Pair(tmp_path / name)
    pair.actor()
    pair.close()


@pytest.mark.parametrize("address", ["tcp://*:5555", "tcp://0.0.0.0:1", "tcp://[::]:1"])
def test_a_bind_beyond_this_machine_needs_keys(address: str) -> None:
    with pytest.raises(ConfigError, match=r"launch\.py keys"):
        check_bind(address, "")
    check_bind(address, "some/folder")


@pytest.mark.parametrize("address", ["", "tcp://127.0.0.1:5", "tcp://localhost:5", "tcp://[::1]:5"])
def test_a_bind_on_this_machine_needs_none(address: str) -> None:
    check_bind(address, "")


def test_a_learner_can_listen_on_localhost_and_be_found_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = config(bind=f"tcp://localhost:{port}")
    learner = LearnerEndpoint(settings, endpoint(settings, tmp_path))
    learner.start(0)
    actor = ActorEndpoint(settings, connect_endpoint(settings, tmp_path), 0, SIZE)
    actor.handshake(10)
    actor.close()
    learner.stop()


@pytest.mark.parametrize(
    "address",
    [
        *("tcp://127.0.0.1:*", "tcp://127.0.0.1", "tcp://::1:5", "5555", "ipc:///tmp/x"),
        *("tcp://eth0:5", "tcp://127.example.org:5", "tcp://127.0.0.1:65536"),
    ],
)
def test_a_bind_that_actors_could_not_find_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected tcp://ADDRESS:PORT"):
        check_bind(address, "some/folder")


def test_what_a_resumed_run_had_counts_against_its_limit(tmp_path: Path) -> None:
    learner = LearnerEndpoint(config(), ipc_endpoint(tmp_path / "ipc"))
    learner.set_insert_limit(5_016, 5_000)
    learner.start(5_000)
    actor = ActorEndpoint(config(), learner.address, 0, SIZE)
    with stopping(learner), contextlib.closing(actor):
        actor.handshake(10)
        assert (actor._granted_seq, actor.env_steps) == (1, 5_000)  # one chunk, not a window


def test_an_actor_that_is_heard_is_not_silent(pair: Pair) -> None:
    actor = pair.actor()
    session = pair.learner._sessions.get(actor.session)
    assert session
    session.last_heard -= 30
    before = session.last_heard
    actor.report({"play": 1.0})
    eventually(lambda: session.report)
    assert session.last_heard > before + 25


def test_an_actor_whose_steps_take_long_is_heard_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, clock = pair.actor(), [time.monotonic()]
    session = pair.learner._sessions.get(actor.session)
    assert session
    monkeypatch.setattr("common.dealer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in range(2):
        session.last_heard -= 30
        before = session.last_heard
        clock[0] += 6.0  # between two looks, as if it had been away
        actor.poll()
        eventually(lambda before=before: session.last_heard > before + 25)


def test_a_learner_that_was_away_holds_no_silence_against_its_actors(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, searched = [time.monotonic()], []
    fence = pair.learner._sessions.fence_silent

    def fence_silent(since: float) -> None:
        fence(since)
        searched.append(since)

    monkeypatch.setattr("common.router.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(pair.learner._sessions, "fence_silent", fence_silent)
    pair.actor()
    clock[0] += 40  # more than the silence that an actor is allowed
    pair.learner._wake()
    eventually(lambda: searched and searched[-1] > clock[0] - 36)
    assert pair.learner.alive == 1


def test_a_transport_thread_that_dies_is_heard_of(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    def told() -> RuntimeError | None:
        try:
            pair.learner.drain()
        except RuntimeError as error:
            return error
        return None

    monkeypatch.setattr(pair.learner, "_grant", broken)
    pair.learner._wake()
    assert isinstance(eventually(told).__cause__, KeyError)
    pair.learner._inbox.append(pair.chunk(5))  # it had been acknowledged, so it is not lost
    assert len(pair.learner.drain()) == 1
    assert isinstance(told(), TransportDied)


def test_a_replaced_life_that_says_hello_again_stays_replaced(pair: Pair) -> None:
    first, second = pair.actor(5), pair.actor(5)
    first._reconnect()
    with pytest.raises(Refused, match="took its place"):
        first.handshake(10)
    pair.actors.remove(first)
    first.close()
    pair.learner.set_insert_limit(16, 0)
    second.send(pair.chunk(2))
    assert pair.taken(1) == [2]


def test_a_message_beyond_the_largest_honest_one_ends_its_connection(pair: Pair) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        stranger.connect(pair.address)
        stranger.send(bytes(messages.max_message_bytes(pair.spec) + 1))
        assert monitor.poll(10_000)
        stranger.disable_monitor()
        monitor.close()
    assert pair.learner.stats.refused == 0  # it never reached the decoder


def test_an_actor_that_never_reads_is_told_when_it_does(pair: Pair) -> None:
    hello = messages.Hello(0, pair.config.agreement())
    with zmq.Context() as context, context.socket(zmq.DEALER) as deaf:
        deaf.linger, deaf.rcvhwm = 0, 1
        deaf.connect(pair.address)
        deaf.send(messages.encode_hello(9, hello))
        for _ in range(20_000):
            deaf.send(messages.encode(Header(Type.PING, 9)))
        eventually(lambda: 9 in pair.learner._unsent_acks)

        def told() -> bool:
            while deaf.poll(0):
                deaf.recv()
            return not pair.learner._unsent_acks

        eventually(told)


@pytest.mark.parametrize("lost", [Type.GET_WEIGHTS, Type.WEIGHTS], ids=str)
def test_weights_that_were_lost_are_asked_for_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, lost: Type
) -> None:
    """The first ones, without which an actor does not begin."""
    pair.learner.publish(Weights(3, np.arange(SIZE, dtype=np.float32)))
    actor = ActorEndpoint(pair.config, pair.address, 0, SIZE)
    pair.actors.append(actor)
    transmit, handle = actor._transmit, actor._handle
    dropped: list[Type] = []

    def drops(header: Header) -> bool:
        if header.type != lost or dropped:
            return False
        dropped.append(header.type)
        return True

    def transmitted(message: bytes) -> None:
        if not drops(messages.decode_header(memoryview(message))):
            transmit(message)

    def handled(header: Header, frame: memoryview) -> None:
        if not drops(header):
            handle(header, frame)

    monkeypatch.setattr(actor, "_transmit", transmitted)
    monkeypatch.setattr(actor, "_handle", handled)
    actor.handshake(10)
    got: list[Weights] = []
    eventually(lambda: got.extend(filter(None, [actor.poll()])) or got)
    assert dropped == [lost] and got[0].version == 3


class Hole:
    """A connection that swallows all that is sent, and from which nothing comes."""

    def poll(self, milliseconds: int) -> int:
        time.sleep(milliseconds / 1000)
        return 0

    def send(self, message: bytes, *_: Any, **options: Any) -> None:
        pass

    def close(self, linger: int) -> None:
        pass


def test_a_connection_that_went_dead_without_a_word_is_begun_anew(pair: Pair) -> None:
    actor = ActorEndpoint(pair.config, pair.address, 0, SIZE, reconnect_seconds=0.3)
    pair.actors.append(actor)
    actor.handshake(10)
    pair.learner.set_insert_limit(10_000, 0)
    actor.send(pair.chunk(0))
    assert pair.taken(1) == [0]
    before, actor._dealer = actor._dealer, Hole()  # type: ignore[assignment]
    for i in range(1, 4):
        actor.send(pair.chunk(i))
    assert pair.taken(3) == [1, 2, 3]
    assert isinstance(actor._dealer, zmq.Socket)
    before.close(linger=0)


def test_a_learner_that_does_not_know_what_it_took_of_a_session_is_another_one(pair: Pair) -> None:
    actor = pair.actor()
    pair.learner.set_insert_limit(10_000, 0)
    for i in range(3):
        actor.send(pair.chunk(i))
    pair.taken(3)
    eventually(lambda: actor.poll() or actor.unacknowledged == 0)
    forgotten = messages.Ack(acked_seq=0, granted_seq=9, weights_version=0, env_steps=0)
    with pytest.raises(LearnerGone, match="restarted"):
        actor._on_welcome(forgotten)


def test_a_disk_that_is_gone_does_not_keep_anything_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, beats = Pair(tmp_path), Heartbeats.create(tmp_path / "heartbeats", 1)

    def gone(*_: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    for change in ("unlink", "chmod"):
        monkeypatch.setattr(Path, change, gone)
    ipc_endpoint(tmp_path / "ipc")  # as a restarted actor asks for it
    pair.close()
    beats.close()
    remove_socket(tmp_path)


@pytest.mark.parametrize(
    ("bind", "found"),
    [("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]"), ("192.0.2.1", "192.0.2.1")],
)
def test_actors_find_a_learner_that_listens_everywhere(
    tmp_path: Path, bind: str, found: str
) -> None:
    assert connect_endpoint(config(bind=f"tcp://{bind}:5"), tmp_path) == f"tcp://{found}:5"
