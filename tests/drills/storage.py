"""Disks and checkpoints: crashes while saving, damage, no room."""

import contextlib
import ctypes
import itertools
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import NoCheckpoint
from common.messages import Spec
from common.presets import make_config
from learner.checkpoint import list_checkpoints, verify
from learner.learner import Learner
from tests.builders import chunk_of
from tests.drills.saver import Server, add_chunk, filled, load, save
from tests.drills.system import System, checkpoints, chooser
from tests.running import Awake, until


def crash_everywhere(server: Server, folder: Path, again: bool) -> int:
    """One crash per call that changes the disk. again: the save replaces one of the same name.

    -> calls that a save makes.
    """
    before = folder / f"before-{again}"
    filled(before, 2)
    for call in itertools.count():
        place = Path(shutil.copytree(before, folder / f"crash-{again}-{call}"))
        crashed = server.crash(place, call, again)
        number, replay = load(place)
        assert number in ((2,) if again else (2, 3)), "the checkpoint before is gone"
        assert crashed or number == (2 if again else 3), "a save that ended is not there"
        while replay.end_id < 16 * 4:
            add_chunk(replay)
        save(place, replay, 4)  # and the next save is none the worse
        assert load(place)[0] == 4
        assert not list(place.glob("unfinished-*"))
        shutil.rmtree(place)
        if not crashed:
            break
    assert call > 20, "the steps of saving were not seen"
    return call


def saving_crashes(folder: Path, long: bool) -> dict[int, str]:
    """Row 5: a crash at every single step of saving, and kills at random moments of it."""
    kills, choose, loaded, midway = (100 if long else 20), chooser(5), [], 0
    filled(folder / "first", 1)
    with Server() as server:
        steps = sum(crash_everywhere(server, folder, again) for again in (False, True))
        for turn in range(kills):
            place = Path(shutil.copytree(folder / "first", folder / f"kill-{turn}"))
            server.kill(place, choose.uniform(0.02, 0.25))
            midway += bool(list(place.glob("unfinished-*")))
            loaded.append(load(place)[0])
            shutil.rmtree(place)
    assert min(loaded) > 1, "what had been saved was lost"
    assert midway, "no save was interrupted"
    pause, transitions = pause_for_a_checkpoint(folder, long)
    assert pause <= 0.2, f"training paused {1000 * pause:.0f} ms for a checkpoint"
    return {
        5: f"a crash at each of {steps} steps of saving and {kills} kills while saving ({midway} "
        "in the middle of it): each time the newest complete checkpoint or the one before was "
        f"loaded; training paused {1000 * pause:.0f} ms for a checkpoint of {transitions:,} "
        "transitions (preset pong)"
    }


def pause_for_a_checkpoint(folder: Path, long: bool) -> tuple[float, int]:
    """-> seconds that the training thread is held up, transitions in replay."""
    (folder / "run").mkdir()
    settings = make_config("pong", n_actions=6, actors=2, learner_threads=1)
    learner = Learner(settings, folder / "run", False, time.monotonic())
    chunk = chunk_of(Spec.of(settings), settings.chunk_transitions, 0)
    while len(learner.replay) < (180_000 if long else 20_000):
        learner.insert(chunk)
    began = time.monotonic()
    learner.save()
    pause = time.monotonic() - began
    until(lambda: not learner.checkpoints.busy, 60)
    learner.records.metrics.close()
    assert not learner.checkpoints.error
    return pause, len(learner.replay)


def damage(checkpoint: Path, choose: random.Random) -> str:
    """One random fault in one file. -> what it was."""
    file = choose.choice(sorted(checkpoint.iterdir()))
    kind = choose.choice(("flip", "flip", "truncate", "remove", "stray"))
    content = bytearray(file.read_bytes())
    if kind == "flip":
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        file.write_bytes(content)
    elif kind == "truncate":
        file.write_bytes(content[: choose.randrange(len(content))])
    elif kind == "remove":
        file.unlink()
    else:
        (checkpoint / f"stray-{choose.random()}").write_bytes(b"?")
    return kind


def checkpoints_rot(folder: Path, long: bool) -> dict[int, str]:
    """Row 6: random damage to a checkpoint, then to all of them."""
    times, choose = (1_000 if long else 100), chooser(6)
    good = folder / "good"
    filled(good, 3)
    kinds: dict[str, int] = {}
    for turn in range(times):
        place = folder / f"rot-{turn}"
        shutil.copytree(good, place)
        newest, before = list_checkpoints(place)
        kind = damage(newest, choose)
        kinds[kind] = kinds.get(kind, 0) + 1
        assert load(place)[0] == 2, f"{kind} was not noticed"
        damage(before, choose)
        try:
            load(place)
        except NoCheckpoint as error:
            assert error.exit_code == 5
        else:
            raise AssertionError("a damaged checkpoint was loaded")
        shutil.rmtree(place)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    resumed = resume_after_rot(folder / "resumed", choose)
    return {
        6: f"{times} damaged ({told}): all noticed, the one before was loaded; with that damaged "
        f"too, none; {resumed}"
    }


def resume_after_rot(folder: Path, choose: random.Random) -> str:
    """A run whose newest checkpoint is damaged, then every one."""
    folder.mkdir()
    with System(folder, checkpoint_period_seconds="1") as system:
        system.until_learning()
        until(lambda: len(checkpoints(system)) == 2, 30)
        assert system.end() == 130, system.text
        newest, before = list_checkpoints(system.run_dir / "checkpoints")
        damage(newest, choose)
        system.resume()
        env_steps = int(before.name.split("-")[1])
        until(lambda: f"Resumed at {env_steps:,} env steps" in system.text, 30)
        assert f"Checkpoint {newest.name} is not used" in system.text
        assert system.end() == 130, system.text
        for checkpoint in checkpoints(system):
            damage(checkpoint, choose)
        system.resume()
        assert system.process.wait(30) == 5, system.text
        assert "No checkpoint in" in system.text and "Traceback" not in system.text
    return "`--resume` went on from the one before, and with all damaged ended with exit code 5"


def no_room(folder: Path, long: bool) -> dict[int, str]:
    """Row 7: files that cannot grow, a folder that is read-only, a disk that is full."""
    (folder / "run").mkdir()
    with small_disk(folder / "run") as mounted:
        ways: list[Way] = [growth_forbidden, read_only]
        if mounted:
            ways.append(full_disk)
        with System(folder, prepare=no_override, checkpoint_period_seconds="2") as system:
            system.until_learning()
            until(lambda: checkpoints(system), 30)
            if long:
                seen = [survives(system, [way], 75) for way in ways]
            else:  # the one keeps checkpoints from being made, the other rows from being written
                seen = [survives(system, [growth_forbidden, read_only], 4)]
            assert system.end() == 130, system.text
            system.account()
            rows = [float(row["env_steps"]) for row in system.rows()]
    assert rows == sorted(rows)
    without = "" if mounted else " (no disk could be mounted here to be filled)"
    return {7: "; ".join(seen) + without}


Way = Callable[[System], contextlib.AbstractContextManager[None]]


def survives(system: System, ways: list[Way], seconds: float) -> str:
    """One fault, or some at once, for so long. -> what was seen."""
    rate_before = rate_shown(system, 3.0)
    said = len(system.text)
    with contextlib.ExitStack() as faults:
        for way in ways:
            faults.enter_context(way(system))
        until(lambda: "Could not write" in system.text[said:], 90)
        kept = {path.name for path in checkpoints(system)}
        before = shown_updates(system)
        Awake().sleep(seconds)
        went_on = shown_updates(system) - before
        warnings = system.text[said:].count("Could not write")
        still = {path.name for path in checkpoints(system)}
        for checkpoint in checkpoints(system):
            verify(checkpoint)
    system.until_learning()  # by metrics.csv: it is being written
    until(lambda: {path.name for path in checkpoints(system)} - still, 30)
    names = " and ".join(way.__name__.replace("_", " ") for way in ways)
    rate = went_on / seconds
    assert rate > 0.5 * rate_before, f"{names}: {rate:.1f} updates/s, {rate_before:.1f} before"
    assert warnings == 1 + seconds // 60, f"{names}: {warnings} warnings in {seconds:g} s"
    assert still == kept and still, "checkpoints came or went while nothing could be written"
    return (
        f"{names} for {seconds:g} s: {went_on} updates went on, {warnings} warning(s), earlier "
        "checkpoints intact, everything written again afterwards"
    )


@contextlib.contextmanager
def growth_forbidden(system: System) -> Iterator[None]:
    """RLIMIT_FSIZE of the learner: every write fails, as on a full disk."""
    learner = system.learner
    assert learner
    soft, hard = resource.prlimit(learner.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(learner.pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(learner.pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only(system: System) -> Iterator[None]:
    """Nothing can be created in the run's folder or among its checkpoints, nothing removed."""
    folders = [system.run_dir, system.run_dir / "checkpoints"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


@contextlib.contextmanager
def full_disk(system: System) -> Iterator[None]:
    """Not a byte is left on the disk of the run's folder."""
    filler = system.run_dir / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 256 MB mounted on this folder. -> was it allowed? It takes privileges."""
    words = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def no_override() -> None:
    """For a process to be: even root minds the permissions of files (CAP_DAC_OVERRIDE dropped)."""
    pr_capbset_drop, cap_dac_override = 24, 1
    ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0)


def rate_shown(system: System, seconds: float) -> float:
    """Updates per second."""
    before = shown_updates(system)
    Awake().sleep(seconds)
    return (shown_updates(system) - before) / seconds


def shown_updates(system: System) -> int:
    """By the console, which does not need the disk."""
    lines = [line for line in system.text.splitlines() if " updates  " in line]
    return int(lines[-1].split(" updates  ")[0].split()[-1].replace(",", ""))
