"""Checkpoints: atomic, verified, resumable.

A checkpoint is a folder `step-<env_steps>` with
  model.safetensors       online.*, target.*, policy.* (where it is averaged), adam.* and, from
                          lock-step, player.*
  state.json              counters, ids, sampler, limiter, random state, records and, from
                          lock-step, the games (`learner/state_json.py`); epsilon follows from the
                          counters, the step size from the scores among the records
  replay-<a>-<b>.z        segments of the replay (`learner/segments.py`)
  MANIFEST.json           SHA-256 of each of them
It is written under another name, synced and renamed, so a folder of that name is complete; every
byte is verified before use. Replay segments never change: a later checkpoint copies those that
still verify instead of compressing them again, so damage to one checkpoint never reaches another.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import threading
import traceback
import zlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from common.errors import Mismatch, NoCheckpoint
from common.machine import cores
from learner.replay import Replay, StoredChunk
from learner.segments import (
    SEGMENT_CHUNKS,
    Damaged,
    load_segments,
    pack_live,
    segment_name,
    segment_range,
)
from learner.state_json import from_json, to_json

FORMAT = 11  # of state.json
_REPLACED = "-replaced"
_ASIDE = "unused-"  # before the name of a checkpoint that a resumed run did not go on from


@dataclass(frozen=True)
class Snapshot:
    """What the training thread hands over: copies, and the list of chunks to read."""

    env_steps: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    chunks: list[StoredChunk]


class Checkpointer:
    """Writes the checkpoints of one run.

    error: what kept the last one from being written, else None; training goes on without it.
    base: the one whose segments the next may copy: the last that was written here or, as its loader
    sets it, that the run goes on from. What else lies in the folder may be of a line that was left.
    """

    def __init__(self, folder: Path, replay: Replay, keep: int) -> None:
        self.folder, self.replay, self.keep = folder, replay, keep
        self.error: Exception | None = None
        self.base: Path | None = None
        self._thread: threading.Thread | None = None
        self._moved = threading.Event()  # since somebody looked, the thread got on
        for leftover in folder.glob("unfinished-*"):  # of a killed run; the folder is locked
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Is one still being written?"""
        return self._thread is not None and self._thread.is_alive()

    def save(self, snapshot: Snapshot) -> None:
        """Write one checkpoint in a thread of its own; not while `busy`."""
        given = [snapshot, self._moved.set]
        self._thread = threading.Thread(target=self._write, args=given, name="checkpoint")
        self._thread.start()

    def save_now(self, snapshot: Snapshot, beat: Callable[[], None] = lambda: None) -> None:
        """The same, done when it returns. beat: called as it gets on, and as one that is still
        being written does: who hangs in a disk shows no life."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)
            if self._moved.is_set():
                self._moved.clear()
                beat()
        self._write(snapshot, beat, threads=cores())  # nobody else needs them now

    def _write(
        self, snapshot: Snapshot, beat: Callable[[], None] = lambda: None, threads: int = 1
    ) -> None:
        self.error = None
        unfinished = self.folder / f"unfinished-{os.getpid()}"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            sums, first_id = self._segments(snapshot, unfinished, beat, threads)
            state = snapshot.state | {"format": FORMAT, "replay_first_id": first_id}
            for name, content in (
                ("model.safetensors", save_tensors(snapshot.tensors)),
                ("state.json", to_json(state)),
            ):
                sums[name] = _write_file(unfinished / name, content)
            _write_file(unfinished / "MANIFEST.json", _manifest(sums))
            _sync(unfinished)
            beat()
            self._put_in_place(unfinished, f"step-{snapshot.env_steps:012d}")
        except Exception as error:  # whatever it was, learning is worth more than this checkpoint
            self.error = error
            shutil.rmtree(unfinished, ignore_errors=True)
            if not isinstance(error, OSError):  # a bug; the sentence about it is the records'
                with contextlib.suppress(OSError):
                    traceback.print_exc()

    def _put_in_place(self, unfinished: Path, name: str) -> None:
        """From here on it counts; older ones go."""
        final = self.folder / name
        replaced = final.with_name(name + _REPLACED)  # still a checkpoint by its name
        if final.exists():  # saved twice at one env step: never without either of them
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        unfinished.rename(final)
        self.base = final
        shutil.rmtree(replaced, ignore_errors=True)
        _sync(self.folder)
        others = [path for path in list_checkpoints(self.folder) if path != final]
        for old in others[self.keep - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        for old in sorted(self.folder.glob(f"{_ASIDE}*"))[:-1]:  # one is enough to look into
            shutil.rmtree(old, ignore_errors=True)

    def _segments(
        self, snapshot: Snapshot, folder: Path, beat: Callable[[], None], threads: int
    ) -> tuple[dict[str, str], int]:
        """Copy what the checkpoint before holds and still verifies, compress the rest.

        Training goes on meanwhile. A full ring overwrites its oldest chunks: those that were hit
        before they could be read are left out, since the ring has forgotten them too.
        -> checksums by file name, first id kept.
        """
        if not snapshot.chunks:
            return {}, 0
        first, last = snapshot.chunks[0].first_id, snapshot.chunks[-1].end_id
        sums, done = self._copy_segments(first, last, folder, beat)
        fresh = [chunk for chunk in snapshot.chunks if chunk.first_id >= done]
        segments = [fresh[i : i + SEGMENT_CHUNKS] for i in range(0, len(fresh), SEGMENT_CHUNKS)]
        # Closed, and with it its threads, where writing fails too.
        with contextlib.closing(self._packed(segments, threads)) as packings:
            for wanted, (chunks, packed) in zip(segments, packings, strict=True):
                beat()
                if chunks != wanted:
                    first = chunks[0].first_id if chunks else wanted[-1].end_id
                if chunks:
                    name = segment_name(chunks)
                    sums[name] = _write_file(folder / name, packed)
        return sums, first

    def _copy_segments(
        self, first: int, last: int, folder: Path, beat: Callable[[], None]
    ) -> tuple[dict[str, str], int]:
        """Those of the checkpoint before, whole ones in a row, that hold transitions from `first`
        on and none beyond `last`. -> checksums by file name, end of what they hold."""
        sums: dict[str, str] = {}
        done = first
        for path, expected in _segments_of(self.base):
            start, end = segment_range(path)
            if end > first and start <= done and end <= last:
                beat()
                content = _read_if_whole(path, expected)
                if content is None:
                    break  # this and what follows is taken from the ring again
                sums[path.name] = _write_file(folder / path.name, content)
                done = end
        return sums, done

    def _packed(
        self, segments: list[list[StoredChunk]], threads: int
    ) -> Generator[tuple[list[StoredChunk], bytes], None, None]:
        """Each segment packed, in order; at most 2 * threads of them wait to be written."""
        pack = partial(pack_live, self.replay)
        if threads == 1:  # beside training: one core, least memory
            yield from map(pack, segments)
            return
        with ThreadPoolExecutor(threads) as pool:  # zlib works without the interpreter's lock
            for i in range(0, len(segments), 2 * threads):
                yield from pool.map(pack, segments[i : i + 2 * threads])


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first; one that was being replaced after its successor."""
    return sorted(
        folder.glob("step-*"),
        key=lambda path: (path.name.removesuffix(_REPLACED), not path.name.endswith(_REPLACED)),
        reverse=True,
    )


def load_newest(
    folder: Path, replay: Replay, check: Callable[[Any], None], log: Callable[[str], None]
) -> tuple[Path, dict[str, Tensor], Any]:
    """Fill `replay` from the newest checkpoint that verifies. -> it, its tensors and its state.

    check: raises, with the state, when the checkpoint is not of this run; called before the
    replay is touched. Says through `log` what did not verify. Raises NoCheckpoint when none does.
    """
    newer: list[Path] = []
    for path in list_checkpoints(folder):
        try:
            verify(path)
            tensors = load_tensors((path / "model.safetensors").read_bytes())
            state = from_json((path / "state.json").read_bytes())
            if state.get("format") != FORMAT:
                raise Mismatch(
                    f"{path} was written by another version of Volley (format "
                    f"{state.get('format')}, this version reads {FORMAT})."
                )
            check(state)
            load_segments(path, replay, state["replay_first_id"])
        except (OSError, Damaged, SafetensorError, zlib.error) as error:
            log(f"Checkpoint {path.name} is not used: {error}")
            replay.clear()
            newer.append(path)
            continue
        for other in newer:  # the run leaves their line
            try:
                other.rename(_aside(other))
            except OSError as error:  # as long as it does not verify it will be passed over again
                log(f"It cannot be put aside: {error}")
        return path, tensors, state
    raise NoCheckpoint(f"No checkpoint in {folder} verifies: start a new run.")


def _aside(checkpoint: Path) -> Path:
    """Where it may be put: where one of this very step was passed over before, unless that one
    cannot be removed."""
    name = _ASIDE + checkpoint.name
    for number in itertools.count(2):
        aside = checkpoint.with_name(name)
        shutil.rmtree(aside, ignore_errors=True)
        if not aside.exists():
            break
        name = f"{_ASIDE}{checkpoint.name}-{number}"
    return aside


def verify(path: Path) -> None:
    """Raises Damaged unless the folder holds exactly what its manifest says, byte for byte."""
    sums = _read_manifest(path)
    found = {p.name for p in path.iterdir()} - {"MANIFEST.json"}
    if found != set(sums):
        odd = sorted(found ^ set(sums))[0]
        raise Damaged(f"{odd} is {'missing' if odd in sums else 'not part of it'}")
    for name, expected in sums.items():
        if _sha256((path / name).read_bytes()) != expected:
            raise Damaged(f"{name} fails its checksum")


def _manifest(sums: dict[str, str]) -> bytes:
    return json.dumps({"files": sums, "sha256": _sum_of_sums(sums)}, indent=1).encode()


def _read_manifest(checkpoint: Path) -> dict[str, str]:
    """Checksums by file name. Raises Damaged when the manifest is not whole."""
    try:
        manifest = json.loads((checkpoint / "MANIFEST.json").read_bytes())
        sums, own = dict(manifest["files"]), manifest["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise Damaged("its manifest cannot be read") from None
    if own != _sum_of_sums(sums):
        raise Damaged("its manifest is damaged")
    return sums


def _sum_of_sums(sums: dict[str, str]) -> str:
    return _sha256(json.dumps(sums, sort_keys=True).encode())


def _segments_of(checkpoint: Path | None) -> list[tuple[Path, str]]:
    """The replay's segments in a checkpoint, oldest first, with the checksums they should have."""
    if checkpoint:
        with contextlib.suppress(Damaged, OSError):
            sums = _read_manifest(checkpoint)
            names = sorted(name for name in sums if name.startswith("replay-"))
            return [(checkpoint / name, sums[name]) for name in names]
    return []


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_if_whole(path: Path, expected: str) -> bytes | None:
    """Its content, if it has this checksum still."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if _sha256(content) == expected:
            return content
    return None


def _write_file(path: Path, content: bytes) -> str:
    """Onto the disk. -> checksum."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return _sha256(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
