"""The wire: what is encoded comes back, and nothing else gets in."""

import contextlib
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages
from common.messages import (
    Ack,
    BadMessage,
    Chunk,
    EpisodeStats,
    Header,
    Hello,
    Reject,
    Spec,
    Type,
    Weights,
)
from tests.builders import chunk_of

SPEC = Spec(n_actions=6, n_step=3, gamma=0.99, chunk_transitions=16)
META_AT = struct.calcsize("<4sHBxQQII")


def chunk_bytes(chunk: Chunk | None = None) -> bytearray:
    return bytearray(messages.encode_chunk(7, 3, chunk or chunk_of(SPEC, 16, 5)))


def with_meta(meta: object) -> memoryview:
    """An otherwise good chunk with another meta."""
    _, rest = messages.decode_meta(memoryview(chunk_bytes()))
    return memoryview(messages.encode(Header(Type.CHUNK, 7, 3), meta, rest))


@given(st.integers(1, 16), st.booleans(), st.integers(0, 60_000), st.booleans())
@settings(max_examples=40)
def test_chunks_round_trip(length: int, terminal: bool, stamp: int, with_episode: bool) -> None:
    chunk = chunk_of(SPEC, length, stamp, terminal)
    if with_episode:
        stats = EpisodeStats(-20.5, 1234)
        chunk = Chunk(chunk.frames, chunk.transitions, 4, stats)
    frame = memoryview(messages.encode_chunk(2**63 + 1, 77, chunk))
    assert messages.decode_header(frame) == Header(Type.CHUNK, 2**63 + 1, 77)
    assert len(frame) <= messages.max_message_bytes(SPEC)
    back = messages.decode_chunk(frame, SPEC)
    assert (back.frames == chunk.frames).all()
    assert (back.transitions == chunk.transitions).all()
    assert (back.policy_version, back.episode) == (chunk.policy_version, chunk.episode)


@given(st.integers(0, 5_000))
def test_weights_round_trip(size: int) -> None:
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    frame = memoryview(messages.encode_weights(Weights(12, vector)))
    back = messages.decode_weights(frame, size)
    assert back.version == 12
    assert (back.vector == vector).all()


def test_small_messages_round_trip() -> None:
    hello = Hello(3, {"env": "Pong", "gamma": 0.99})
    assert messages.decode_hello(memoryview(messages.encode_hello(1, hello))) == hello
    ack = Ack(1, 2, -1, 10**9)
    assert messages.decode_ack(memoryview(messages.encode_ack(Type.ACK, 1, ack))) == ack
    reject = Reject("because", 3)
    assert messages.decode_reject(memoryview(messages.encode_reject(1, reject))) == reject


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_any_flipped_bit_is_noticed(bit: int) -> None:
    raw = chunk_bytes(chunk_of(SPEC, 2, 0))
    bit %= 8 * len(raw)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMessage):
        messages.decode_header(memoryview(raw))


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        (Hello(4096, {}), "actor id 4096, at most 4095"),
        (Hello(-1, {}), "actor id -1"),
        (Hello(1, {"env": [[]]}), "named plain values"),
        (Hello(1, {"env": None}), "named plain values"),
    ],
)
def test_a_hello_that_could_hurt_is_refused(hello: Hello, message: str) -> None:
    with pytest.raises(BadMessage, match=message):
        messages.decode_hello(memoryview(messages.encode_hello(1, hello)))


def test_weights_of_another_network_or_not_finite_are_refused() -> None:
    raw = memoryview(messages.encode_weights(Weights(1, np.ones(100, np.float32))))
    with pytest.raises(BadMessage, match="expected 404"):
        messages.decode_weights(raw, 101)
    raw = memoryview(messages.encode_weights(Weights(2, np.full(100, np.nan, np.float32))))
    with pytest.raises(BadMessage, match="weights version 2 are not finite"):
        messages.decode_weights(raw, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:10], "not a message"),
        (lambda raw: b"XXXX" + raw[4:], "not a message"),
        (lambda raw: raw[:4] + b"\x09\x00" + raw[6:], "fails its checksum"),
        (lambda raw: raw[:6] + b"\x63" + raw[7:], "fails its checksum"),
        (lambda raw: raw[:-1], "fails its checksum"),
        (lambda raw: raw + b"\0", "fails its checksum"),
    ],
)
def test_a_malformed_header_is_refused(change: object, message: str) -> None:
    with pytest.raises(BadMessage, match=message):
        messages.decode_header(memoryview(change(bytes(chunk_bytes()))))  # type: ignore[operator]


def test_an_unknown_type_is_refused() -> None:
    raw = messages.encode(Header(99, 1))  # type: ignore[arg-type]
    with pytest.raises(BadMessage, match="unknown message type 99"):
        messages.decode_header(memoryview(raw))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "list of 4"),
        ([16, 22, 0], "list of 4"),
        (["16", 22, 0, None], "expected int"),
        ([True, 22, 0, None], "expected int"),
        ([0, 22, 0, None], "0 transitions"),
        ([17, 22, 0, None], "17 transitions"),
        ([16, 10**9, 0, None], "frames, at most"),
        ([16, 21, 0, None], "bytes, expected"),
        ([16, 22, 0, [float("nan"), 10]], "out of range"),
        ([16, 22, 0, [-1e308, 10]], "out of range"),  # ten of them have no mean
        ([16, 22, 0, [20.0, 0]], "out of range"),
        ([16, 22, 0, ["1", 10]], "expected float"),
    ],
)
def test_a_chunk_with_wrong_meta_is_refused(meta: object, message: str) -> None:
    with pytest.raises(BadMessage, match=message):
        messages.decode_chunk(with_meta(meta), SPEC)


def test_meta_beyond_4_kb_extension_types_and_trailing_bytes_are_refused() -> None:
    header = Header(Type.PING, 1)
    with pytest.raises(BadMessage, match="at most 4096"):
        messages.decode_meta(memoryview(messages.encode(header, "x" * 5_000)))
    with pytest.raises(BadMessage, match="not msgpack"):
        messages.decode_meta(memoryview(messages.encode(header, msgpack.ExtType(1, b"x"))))
    with pytest.raises(BadMessage, match="not msgpack"):
        messages.decode_meta(memoryview(messages.encode(header, [0] * 33)))
    with pytest.raises(BadMessage, match="not msgpack"):
        messages.decode_meta(memoryview(messages.encode(header, {str(i): 0 for i in range(33)})))
    with pytest.raises(BadMessage, match="3 bytes too many"):
        messages.decode_ack(memoryview(messages.encode(header, [1, 2, 3, 4], b"abc")))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("span", 0, "span outside"),
        ("span", 4, "span outside"),
        ("span", 1, "do not belong together"),
        ("action", 6, "action 6 of 6"),
        ("n_step_return", np.nan, "not finite"),
        ("n_step_return", np.inf, "not finite"),
        ("n_step_return", -3e38, r"a return beyond 1e\+06"),
        ("discount", 1.0, "discount"),
        ("discount", np.nan, "discount"),
    ],
)
def test_a_transition_out_of_range_is_refused(field: str, value: float, message: str) -> None:
    chunk = chunk_of(SPEC, 16, 0)
    chunk.transitions[field][15] = value
    with pytest.raises(BadMessage, match=message):
        messages.decode_chunk(memoryview(chunk_bytes(chunk)), SPEC)


@settings(max_examples=300)
@given(st.data())
def test_a_decoder_given_nonsense_that_is_whole_raises_nothing_but_bad_message(
    data: st.DataObject,
) -> None:
    """Bytes changed behind the checksum's back, as a malicious sender may."""
    raw = chunk_bytes(chunk_of(SPEC, 2, 0))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(META_AT - 8, 80))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(META_AT, len(raw))) :]
    frame = memoryview(bytes(raw))
    decoders = (
        lambda f: messages.decode_chunk(f, SPEC),
        lambda f: messages.decode_weights(f, 5),
        messages.decode_hello,
        messages.decode_ack,
        messages.decode_reject,
        messages.decode_report,
    )
    for decode in decoders:
        with contextlib.suppress(BadMessage):
            decode(frame)  # type: ignore[operator]


@pytest.mark.parametrize(
    "shares", [[], {"play": "x"}, {"play": 1}, {"a/b": 1.0}, {f"s{i}": 0.0 for i in range(17)}]
)
def test_a_report_that_is_not_of_named_shares_is_refused(shares: Any) -> None:
    frame = memoryview(messages.encode(Header(Type.REPORT, 1), shares))
    with pytest.raises(BadMessage, match="a report"):
        messages.decode_report(frame)
