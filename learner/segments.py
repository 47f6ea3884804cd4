"""The replay on the disk: segments, each some chunks in a row.

A segment is a file `replay-<a>-<b>.z` with transitions a to b - 1, zlib level 1 of
  number of chunks, u64
  first_id, length, frame_start, frame_count of each, i64: where it lay in the ring
  each chunk's transitions, then its frames
It never changes: what it holds does not change in the ring either, until it is overwritten.
"""

import zlib
from pathlib import Path

import numpy as np

from common.config import FRAME_SHAPE, STACK
from common.messages import TRANSITION_DTYPE, Chunk
from learner.replay import Replay, StoredChunk

SEGMENT_CHUNKS = 64  # at most
_LAYOUT_DTYPE = np.dtype("<i8")


class Damaged(RuntimeError):
    """A checkpoint does not verify. Carries one sentence."""


def segment_name(chunks: list[StoredChunk]) -> str:
    return f"replay-{chunks[0].first_id:014d}-{chunks[-1].end_id:014d}.z"


def segment_range(path: Path) -> tuple[int, int]:
    _, start, end = path.stem.split("-")
    return int(start), int(end)


def pack_live(replay: Replay, chunks: list[StoredChunk]) -> tuple[list[StoredChunk], bytes]:
    """-> those of the chunks that could be read before the ring overwrote them, packed."""
    while chunks:
        packed = _pack_segment(replay, chunks)
        live = [chunk for chunk in chunks if chunk.first_id >= replay.first_id]
        if live == chunks:
            return chunks, packed
        chunks = live
    return [], b""


def _pack_segment(replay: Replay, chunks: list[StoredChunk]) -> bytes:
    layout = np.array(
        [[c.first_id, c.length, c.frame_start, c.frame_count] for c in chunks], _LAYOUT_DTYPE
    )
    packer = zlib.compressobj(level=1)
    parts = [packer.compress(len(chunks).to_bytes(8, "little") + layout.tobytes())]
    for stored in chunks:
        chunk = replay.read_chunk(stored)
        parts += [packer.compress(chunk.transitions.data), packer.compress(chunk.frames.data)]
    return b"".join([*parts, packer.flush()])


def load_segments(path: Path, replay: Replay, first_live_id: int) -> None:
    """A copied segment may begin with chunks that were evicted since: they are passed over.

    Raises Damaged when it was written by something else.
    """
    for segment in sorted(path.glob("replay-*.z")):
        raw = memoryview(zlib.decompress(segment.read_bytes()))
        count, at = int.from_bytes(raw[:8], "little"), 8
        layout = np.frombuffer(raw, _LAYOUT_DTYPE, count * 4, at).reshape(count, 4)
        at += layout.nbytes
        for first_id, length, frame_start, frame_count in layout.tolist():
            transitions = np.frombuffer(raw, TRANSITION_DTYPE, length, at)
            at += transitions.nbytes
            size = frame_count * FRAME_SHAPE[0] * FRAME_SHAPE[1]
            frames = np.frombuffer(raw, np.uint8, size, at).reshape(frame_count, *FRAME_SHAPE)
            at += size
            stored = StoredChunk(first_id, length, frame_start, frame_count)
            spans = transitions["span"].astype(np.int64)
            if STACK + (np.arange(length) + spans).max(initial=0) > frame_count:
                raise Damaged(f"{segment.name} has a transition whose frames it has not")
            if first_id >= first_live_id:
                replay.restore(stored, Chunk(frames, transitions, -1))
