"""What crosses a process border, as bytes: encode, and decode with validation.

A message is one frame: header, meta, buffers. The header is fixed (magic, protocol, type, session,
seq, length of meta, checksum of all else); `meta` is msgpack of at most 4 kB; buffers are raw, and
their dtype, shape and length follow from the `Spec` that both sides agreed on, never from the
message. Nothing here can execute anything. One frame, because its size can be bounded where it
arrives, and because libzmq 4.3 aborts when a peer leaves in the middle of a multipart message
(libzmq issue 3442).
"""

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from common.config import FRAME_SHAPE, STACK, Config

MAGIC = b"VLY1"
PROTOCOL = 3
MAX_META_BYTES = 4096
MAX_META_ITEMS = 32  # of each list or map in it
MAX_ACTORS = 4096
MAX_RETURN = 1e6  # of n steps; its square must be far from what float32 can hold
MAX_SCORE = 1e30  # of a game; the sum of a hundred must be finite, in float32 too
_HEADER = struct.Struct("<4sHBxQQI")  # magic, protocol, type, -, session, seq, meta bytes
_CHECKSUM = struct.Struct("<I")  # CRC-32 of the header before it and of everything after it
_META = _HEADER.size + _CHECKSUM.size  # where the meta begins

TRANSITION_DTYPE = np.dtype(
    [("action", "u1"), ("span", "u1"), ("n_step_return", "<f4"), ("discount", "<f4")]
)
"""One transition. span: env steps from obs to next_obs, n_step, or fewer at an episode's end;
n_step_return: sum of gamma^k r_k over k < span, without the bootstrap; discount: what the bootstrap
is multiplied by, gamma^span, or 0 where the episode terminated within the span."""


class BadMessage(ValueError):
    """A message that no honest peer of this version sends. Carries one sentence."""


class OtherProtocol(BadMessage):
    """A peer of another version; header and checksum are the same since protocol 2, so that it can
    be told."""

    def __init__(self, version: int, session: int) -> None:
        super().__init__(f"protocol version {version}, expected {PROTOCOL}")
        self.version, self.session = version, session


class Type(enum.IntEnum):
    """Message types; actor to learner below 16, learner to actor from 16 on."""

    HELLO = 1
    CHUNK = 2
    GET_WEIGHTS = 3
    PING = 4
    REPORT = 5
    WELCOME = 16
    REJECT = 17
    ACK = 18
    WEIGHTS = 19
    BYE = 20


@dataclass(frozen=True, slots=True)
class Header:
    """Who sends what: `session` names one life of one actor, `seq` numbers its chunks from 1."""

    type: Type
    session: int
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Spec:
    """What a chunk may look like; both sides derive it from the same configuration."""

    n_actions: int
    n_step: int
    gamma: float
    chunk_transitions: int

    @classmethod
    def of(cls, config: Config) -> "Spec":
        return cls(config.n_actions, config.n_step, config.gamma, config.chunk_transitions)

    @property
    def max_frames(self) -> int:
        """Frames of a full chunk: lead-in, one per transition, n-step tail."""
        return self.chunk_transitions + STACK - 1 + self.n_step

    def discounts(self) -> np.ndarray:
        """[n_step + 1] f32: the discount that belongs to each span; 0 is always allowed too."""
        return np.array([self.gamma**k for k in range(self.n_step + 1)], np.float32)


@dataclass(frozen=True, slots=True)
class EpisodeStats:
    """One finished game: raw unclipped score, length in env steps."""

    score: float
    length_env_steps: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive transitions of one game, one episode, one session; self-contained.

    frames: [F, 84, 84] u8 with F = STACK + max(i + span_i); transitions: [L] TRANSITION_DTYPE.
    obs_i = frames[i : i + 4]; next_obs_i = frames[i + span_i : i + span_i + 4].
    policy_version: of the weights that chose the first action; -1: not known, as of a chunk that
    was read back from the replay. episode: a game of the same actor that is over, not always this
    one: it goes with whichever chunk leaves next.
    """

    frames: np.ndarray
    transitions: np.ndarray
    policy_version: int
    episode: EpisodeStats | None = None

    def __len__(self) -> int:
        return len(self.transitions)


@dataclass(frozen=True, slots=True)
class Hello:
    """An actor's first word."""

    actor_id: int
    agreement: dict[str, Any]  # of Config


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to CHUNK and PING, sent too when there is new credit or newer weights; as WELCOME
    the answer to HELLO.

    Chunks up to `acked_seq` are the learner's; chunks up to `granted_seq` may be sent. env_steps:
    of the whole run, by which the actor's epsilon falls.
    """

    acked_seq: int
    granted_seq: int
    weights_version: int
    env_steps: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Why the learner will not talk to this session; `exit_code` is the actor's."""

    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A network's whole state as one float32 vector (order: `network.state_vector`)."""

    version: int
    vector: np.ndarray  # [P] f32


ANY_SESSION = 0  # of messages that are the same for every actor


def encode(header: Header, meta: Any = None, *buffers: Any, protocol: int = PROTOCOL) -> bytes:
    packed = msgpack.packb(meta)
    head = _HEADER.pack(MAGIC, protocol, header.type, header.session, header.seq, len(packed))
    checksum = zlib.crc32(packed, zlib.crc32(head))
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    return b"".join([head, _CHECKSUM.pack(checksum), packed, *buffers])


def decode_header(frame: memoryview) -> Header:
    """Raises BadMessage, naming the first thing that is wrong."""
    if len(frame) < _META or bytes(frame[:4]) != MAGIC:
        raise BadMessage("not a message of this protocol")
    _, protocol, kind, session, seq, _ = _HEADER.unpack_from(frame)
    (checksum,) = _CHECKSUM.unpack_from(frame, _HEADER.size)
    if zlib.crc32(frame[_META:], zlib.crc32(frame[: _HEADER.size])) != checksum:
        raise BadMessage("a message fails its checksum")
    if protocol != PROTOCOL:
        raise OtherProtocol(protocol, session)
    try:
        return Header(Type(kind), session, seq)
    except ValueError:
        raise BadMessage(f"unknown message type {kind}") from None


def decode_meta(frame: memoryview) -> tuple[Any, memoryview]:
    """-> the msgpack part, bounded and free of extension types; the rest of the frame."""
    size = _HEADER.unpack_from(frame)[-1]
    end = _META + size
    if size > MAX_META_BYTES or end > len(frame):
        raise BadMessage(f"meta of {size} bytes, at most {MAX_META_BYTES} allowed")
    try:
        meta = msgpack.unpackb(
            frame[_META:end],
            max_ext_len=0,
            max_array_len=MAX_META_ITEMS,  # what a length promises is allocated before it is there
            max_map_len=MAX_META_ITEMS,
            strict_map_key=True,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise BadMessage(f"meta is not msgpack ({type(error).__name__})") from None
    return meta, frame[end:]


def _meta_only(frame: memoryview) -> Any:
    meta, rest = decode_meta(frame)
    if len(rest):
        raise BadMessage(f"{len(rest)} bytes too many")
    return meta


def _fields(meta: Any, *kinds: type) -> list[Any]:
    """`meta` as a list of exactly these types (int is taken where float is due)."""
    if not isinstance(meta, list) or len(meta) != len(kinds):
        raise BadMessage(f"meta is not a list of {len(kinds)}")
    for value, kind in zip(meta, kinds, strict=True):
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise BadMessage(f"meta holds {type(value).__name__}, expected {kind.__name__}")
    return meta


def encode_hello(session: int, hello: Hello) -> bytes:
    return encode(Header(Type.HELLO, session), [hello.actor_id, hello.agreement])


def decode_hello(frame: memoryview) -> Hello:
    hello = Hello(*_fields(_meta_only(frame), int, dict))
    if not 0 <= hello.actor_id < MAX_ACTORS:
        raise BadMessage(f"actor id {hello.actor_id}, at most {MAX_ACTORS - 1} allowed")
    for name, value in hello.agreement.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float, bool)):
            raise BadMessage("an agreement holds something else than named plain values")
    return hello


def encode_ack(kind: Type, session: int, ack: Ack) -> bytes:
    meta = [ack.acked_seq, ack.granted_seq, ack.weights_version, ack.env_steps]
    return encode(Header(kind, session), meta)


def decode_ack(frame: memoryview) -> Ack:
    return Ack(*_fields(_meta_only(frame), int, int, int, int))


def encode_reject(session: int, reject: Reject, protocol: int = PROTOCOL) -> bytes:
    """protocol: the peer's; REJECT looks the same in every version."""
    meta = [reject.reason[:1000], reject.exit_code]
    return encode(Header(Type.REJECT, session), meta, protocol=protocol)


def decode_reject(frame: memoryview) -> Reject:
    return Reject(*_fields(_meta_only(frame), str, int))


def encode_report(session: int, shares: dict[str, float]) -> bytes:
    """Where an actor's time goes: share of each named section."""
    return encode(Header(Type.REPORT, session), shares)


def decode_report(frame: memoryview) -> dict[str, float]:
    shares = _meta_only(frame)
    if not isinstance(shares, dict) or len(shares) > 16:
        raise BadMessage("a report is not a map of at most 16 sections")
    for name, share in shares.items():
        if not (isinstance(name, str) and name.isidentifier() and type(share) is float):
            raise BadMessage("a report holds something else than named shares")
    return shares


def encode_weights(weights: Weights) -> bytes:
    """The same bytes serve every actor."""
    raw = weights.vector.astype("<f4", copy=False).tobytes()
    return encode(Header(Type.WEIGHTS, ANY_SESSION), weights.version, raw)


def decode_weights(frame: memoryview, size: int) -> Weights:
    """size: floats expected, from the network that will take them."""
    meta, raw = decode_meta(frame)
    (version,) = _fields([meta], int)
    if len(raw) != 4 * size:
        raise BadMessage(f"weights of {len(raw)} bytes, expected {4 * size}")
    vector = np.frombuffer(raw, "<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise BadMessage(f"weights version {version} are not finite")
    return Weights(version, vector)


def encode_chunk(session: int, seq: int, chunk: Chunk) -> bytes:
    stats = chunk.episode
    episode = stats and [stats.score, stats.length_env_steps]
    return encode(
        Header(Type.CHUNK, session, seq),
        [len(chunk), len(chunk.frames), chunk.policy_version, episode],
        np.ascontiguousarray(chunk.transitions),
        np.ascontiguousarray(chunk.frames),
    )


def decode_chunk(frame: memoryview, spec: Spec) -> Chunk:
    """Raises BadMessage unless the chunk is exactly what an honest actor could have sent.

    The arrays are read-only views of the frame.
    """
    meta, raw = decode_meta(frame.toreadonly())
    if not isinstance(meta, list) or len(meta) != 4:
        raise BadMessage("chunk meta is not a list of 4")
    length, frame_count, version = _fields(meta[:3], int, int, int)
    if not 1 <= length <= spec.chunk_transitions:
        raise BadMessage(f"chunk of {length} transitions, expected 1 to {spec.chunk_transitions}")
    if not STACK < frame_count <= spec.max_frames:
        raise BadMessage(f"chunk of {frame_count} frames, at most {spec.max_frames} allowed")
    split = length * TRANSITION_DTYPE.itemsize
    expected = split + frame_count * FRAME_SHAPE[0] * FRAME_SHAPE[1]
    if len(raw) != expected:
        raise BadMessage(f"chunk of {len(raw)} bytes, expected {expected}")
    transitions = np.frombuffer(raw[:split], TRANSITION_DTYPE)
    frames = np.frombuffer(raw[split:], np.uint8).reshape(frame_count, *FRAME_SHAPE)
    chunk = Chunk(frames, transitions, version, _episode(meta[3]))
    _check_transitions(chunk, spec)
    return chunk


def max_message_bytes(spec: Spec, weights_size: int = 0) -> int:
    """The largest honest message: a full chunk, or the weights."""
    chunk = spec.max_frames * FRAME_SHAPE[0] * FRAME_SHAPE[1]
    chunk += spec.chunk_transitions * TRANSITION_DTYPE.itemsize
    return _META + MAX_META_BYTES + max(chunk, 4 * weights_size)


def _episode(meta: Any) -> EpisodeStats | None:
    if meta is None:
        return None
    stats = EpisodeStats(*_fields(meta, float, int))
    if not (abs(stats.score) <= MAX_SCORE and stats.length_env_steps > 0):
        raise BadMessage("episode statistics out of range")
    return stats


def _check_transitions(chunk: Chunk, spec: Spec) -> None:
    t = chunk.transitions
    spans = t["span"].astype(np.int64)
    if spans.min() < 1 or spans.max() > spec.n_step:
        raise BadMessage(f"span outside 1 to {spec.n_step}")
    if STACK + int((np.arange(len(t)) + spans).max()) != len(chunk.frames):
        raise BadMessage("frames and spans do not belong together")
    if t["action"].max() >= spec.n_actions:
        raise BadMessage(f"action {t['action'].max()} of {spec.n_actions}")
    if not np.isfinite(t["n_step_return"]).all():
        raise BadMessage("a return is not finite")
    if np.abs(t["n_step_return"]).max() > MAX_RETURN:
        raise BadMessage(f"a return beyond {MAX_RETURN:g}")
    if not ((t["discount"] == 0) | (t["discount"] == spec.discounts()[spans])).all():
        raise BadMessage("a discount is neither 0 nor gamma^span")
