"""Processes that die, stop, hang and are told to end."""

import signal
import statistics
import time
from pathlib import Path

import psutil

from common.network import network_for, state_size
from tests.drills.system import LearnerWatch, Successor, System, checkpoints, chooser
from tests.running import Awake, last_row, until


def actors_die_and_stop(folder: Path, long: bool) -> dict[int, str]:
    """Rows 1 and 2: `kill -9` a random actor every 5 s, with one actor stopped all the while.

    Half of the actors join at mastery, which here is any ten games.
    """
    actors, seconds = (8, 600) if long else (4, 30)
    flags = {"actors_mastered": str(actors), "reward_mastered": "-100"}
    with System(folder, actors // 2, checkpoint_period_seconds="0", **flags) as system:
        system.until_learning()
        until(system.all_play, 30)
        watch, choose, back = LearnerWatch(system), chooser(1), []
        frozen = system.actor_processes()[0]
        frozen.suspend()
        replacement = Successor(system, 0, frozen.pid)
        kills, began = dict.fromkeys(range(1, actors), 0), time.monotonic()
        while time.monotonic() - began < seconds or not replacement.look():
            assert time.monotonic() - began < seconds + 30, "the stopped actor was not replaced"
            # Five deaths of one actor in a minute are a crash loop: each gets its turn.
            victim = choose.choice([i for i, n in kills.items() if n == min(kills.values())])
            kills[victim] += 1
            killed = time.monotonic()
            old = system.actor_processes()[victim]
            old.kill()
            successor = Successor(system, victim, old.pid)
            while not successor.look() or time.monotonic() - killed < 5.0:
                replacement.look()
                watch.watch(0.05)
                assert time.monotonic() - killed < 30, f"actor {victim} did not come back"
            back.append(successor)
        assert not frozen.is_running(), "two actors of one number"
        assert system.end() == 130, system.text
        account, idle = system.account(), system.longest_idle_seconds()
    waits = [one.back_seconds - one.import_seconds for one in back]
    assert replacement.born_seconds <= 35, f"replaced after {replacement.born_seconds:.1f} s"
    assert watch.longest_seconds < 1.0, f"the learner paused for {watch.longest_seconds:.2f} s"
    assert max(waits) <= 3.0, f"back after its imports and {max(waits):.1f} s"
    return {
        1: f"{len(back)} kills in {seconds} s, {actors} actors, half of which joined at mastery: "
        f"{account}; longest pause of the learner {watch.longest_seconds:.2f} s, "
        f"longest without an update {idle:.1f} s; back after at most {max(waits):.1f} s and the "
        f"imports ({statistics.median(one.import_seconds for one in back):.1f} s)",
        2: f"a stopped actor was killed and replaced after {replacement.born_seconds:.1f} s",
    }


def learner_stalls(folder: Path, long: bool) -> dict[int, str]:
    """Row 3: the learner stops for 40 s and goes on."""
    seconds = 40 if long else 9  # longer than actors, and the transport's patience, wait
    with System(folder, actors=2, checkpoint_period_seconds="0") as system:
        system.until_learning()
        until(system.all_play, 20)
        before = {p: p.memory_info().rss for p in system.actor_processes().values()}
        learner = system.learner
        assert learner
        learner.suspend()
        time.sleep(seconds)
        grown = max(p.memory_info().rss - rss for p, rss in before.items())
        learner.resume()
        system.until_learning()
        assert system.end() == 130, system.text
        account = system.account()
        config = system.config
    window = (config.window_chunks + 1) * (config.chunk_transitions + 8) * 7056
    weights = 4 * state_size(network_for(config))  # newer ones that it has yet to look at
    most = window + weights + (2 << 20)
    assert grown <= most, f"an actor grew by {grown:,} B, its window is {window:,} B"
    return {
        3: f"stalled {seconds} s: {account}; an actor grew by {max(grown, 0):,} B "
        f"(window {window:,} B)"
    }


def learner_dies(folder: Path, long: bool) -> dict[int, str]:
    """Row 4: `kill -9` the learner at random moments, and go on."""
    choose, lost, period = chooser(4), [], 2.0
    times = 10 if long else 1
    with System(folder, actors=2, checkpoint_period_seconds=str(period)) as system:
        newest = 0
        for turn in range(times):
            system.until_learning(5)
            until(lambda last=newest: newest_checkpoint(system) > last, 30)  # type: ignore[misc]
            if turn % 2 == 0:  # in the middle of saving
                until(lambda: list(system.run_dir.glob("checkpoints/unfinished-*")), 30, 0.001)
            else:
                time.sleep(choose.uniform(0.0, 3.0))
            learner = system.learner
            assert learner
            learner.kill()
            assert system.process.wait(20) == 128 + signal.SIGKILL
            assert "the learner was killed by SIGKILL" in system.text
            assert "Go on with:" in system.text
            assert not system.left(), system.left()
            newest = newest_checkpoint(system)
            lost.append(system.seconds_since(newest))
            system.resume()
            resumed = f"Resumed at {newest:,} env steps"
            until(lambda line=resumed: line in system.text, 30)  # type: ignore[misc]
        system.until_learning()
        assert system.end() == 130
    assert max(lost) <= period + 2.0, f"{max(lost):.1f} s of work lost"
    return {
        4: f"{times} kills: at most {max(lost):.1f} s of work lost, checkpoints every "
        f"{period:.0f} s"
    }


def newest_checkpoint(system: System) -> int:
    """Its env steps; 0 when there is none."""
    return max((int(path.name.split("-")[1]) for path in checkpoints(system)), default=0)


def told_to_end(folder: Path, long: bool) -> dict[int, str]:
    """Row 13: SIGINT, SIGTERM and a double SIGINT at start-up, warm-up, training and saving."""
    rounds, choose = (2 if long else 1), chooser(13)
    took: dict[str, list[float]] = {"once": [], "twice": []}
    for turn in range(rounds):
        for stage in ("start-up", "warm-up", "training", "saving"):
            for how in ("SIGINT", "SIGTERM", "double SIGINT"):
                if not long and (stage, how) not in QUICK_ENDS:
                    continue
                place = folder / f"{turn}-{stage}-{how.replace(' ', '-')}"
                place.mkdir()
                go_on = long or stage == "saving"
                seconds = end_once(place, stage, how, choose.random(), go_on)
                took["twice" if how.startswith("double") else "once"].append(seconds)
    assert max(took["once"]) < 5, f"it took {max(took['once']):.1f} s to end"
    assert max(took["twice"]) < 1, f"it took {max(took['twice']):.1f} s to end at once"
    full = end_with_a_full_replay(folder / "full") if long else ""
    return {
        13: f"{sum(map(len, took.values()))} endings: one signal took at most "
        f"{max(took['once']):.1f} s, two {max(took['twice']):.2f} s; no orphan, no socket file"
        + full
    }


QUICK_ENDS = {("start-up", "SIGINT"), ("training", "SIGTERM"), ("saving", "double SIGINT")}


def end_once(folder: Path, stage: str, how: str, chance: float, go_on: bool) -> float:
    """go_on: resume afterwards. -> seconds from the (second) signal until all were gone."""
    starts = "90000" if stage == "warm-up" else "300"
    with System(
        folder, learning_starts_transitions=starts, checkpoint_period_seconds="1"
    ) as system:
        if stage == "start-up":
            time.sleep(0.3 + 2 * chance)
        elif stage == "warm-up":
            until(lambda: system.learner and any(map(system.plays, actors_of(system))), 60)
            time.sleep(chance)
        else:
            system.until_learning()
            until(lambda: checkpoints(system), 30)
        if stage == "saving":
            until(lambda: list((system.run_dir / "checkpoints").glob("unfinished-*")), 30, 0.001)
        awake = Awake()
        system.process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
        if how == "double SIGINT":
            heard = "a second Ctrl-C kills it"
            until(lambda: heard in system.text or system.process.poll() is not None, 30, 0.01)
            time.sleep(0.15)  # two within a tenth of a second count as one
            awake = Awake()
            system.process.send_signal(signal.SIGINT)
        until(lambda: awake.look() and system.process.poll() is not None, 60, 0.01)
        until(lambda: awake.look() and not system.left(), 5, 0.01)
        seconds, code = awake.look(), system.process.returncode
        assert code == 130, f"{stage}, {how}: exit code {code}: {system.text[-2000:]}"
        assert "Traceback" not in system.text, system.text
        saved = bool(checkpoints(system))
        assert saved or stage == "start-up" or how.startswith("double"), "nothing was saved"
        if saved and go_on:
            system.resume()
            until(lambda: "Resumed at" in system.text, 60)
            if stage != "warm-up":
                system.until_learning(1)
            assert system.end() == 130
    return seconds


def actors_of(system: System) -> list[psutil.Process]:
    return list(system.actor_processes().values())


def end_with_a_full_replay(folder: Path) -> str:
    """Pong as it is by default, its whole replay to be written at the end."""
    folder.mkdir()
    flags = {
        "env": "PongNoFrameskip-v4", "envs_per_actor": "8", "chunk_transitions": "64",
        "window_chunks": "16", "replay_transitions": "200000", "samples_per_insert": "1.2",
        "learning_starts_transitions": "10000", "checkpoint_period_seconds": "0",
    }  # fmt: skip
    with System(folder, **flags) as system:
        until(lambda: int(last_row(system.run_dir)["env_steps"]) > 200_000, 900, 1.0)
        began = time.monotonic()
        assert system.end() == 130, system.text
        seconds = time.monotonic() - began
        assert not system.left()
    assert seconds < 5, f"it took {seconds:.1f} s to save 200,000 transitions"
    return f"; Pong with 200,000 transitions in replay, none of them saved before: {seconds:.1f} s"


def launcher_dies(folder: Path, long: bool) -> dict[int, str]:
    """Row 14: `kill -9` of launch.py."""
    times, choose, took = (20 if long else 2), chooser(14), []
    for turn in range(times):
        place = folder / str(turn)
        place.mkdir()
        with System(place, actors=2) as system:
            until(lambda: len(system.actor_processes()) == 2, 30)
            time.sleep(choose.uniform(0, 4))
            system.process.kill()
            with Awake() as awake:
                until(lambda: not [p for p in system.left() if "launch.py" in p], 5, 0.01)
            took.append(awake.seconds)
    assert max(took) < 2, f"a child lived on for {max(took):.1f} s"
    return {14: f"{times} kills: every child gone after at most {max(took):.2f} s"}


def games_break(folder: Path, long: bool) -> dict[int, str]:
    """Row 15: games that raise, hang or segfault now and then, and one that always does."""
    seen = []
    for fault, deaths in (("raise", 3), ("segfault", 3), ("hang", 1)) if long else ():
        place = folder / fault
        place.mkdir()
        faults = {"STAMPED_FAULT": fault, "STAMPED_FAULT_STEPS": "10000"}
        flags = {"checkpoint_period_seconds": "0", "samples_per_insert": "2"}
        with System(place, actors=2, environment=faults, **flags) as system:
            system.until_learning()
            until(
                lambda n=deaths: system.text.count("restarted in") >= n,  # type: ignore[misc]
                400,
            )
            if fault == "hang":
                silent = max(system.silent_seconds())
                assert silent <= 35, f"{silent:.1f} s in a game that hung"
            system.until_learning(50, 120)
            assert system.end() == 130, system.text
            died = system.text.count("restarted in")
            took = f", stuck for {silent:.1f} s" if fault == "hang" else ""
            seen.append(f"{fault}: {died} deaths survived{took}, {system.account()}")
    place = folder / "always"
    place.mkdir()
    faults = {"STAMPED_FAULT": "raise", "STAMPED_FAULT_STEPS": "1"}
    with System(place, actors=1, environment=faults) as loop:
        assert loop.process.wait(120) == 1, loop.text
        assert loop.text.count("restarted in") == 4, loop.text
        assert "dead 5 times: giving up" in loop.text
        assert "RuntimeError: the game broke, as it was asked to" in loop.text
        assert not loop.left()
    seen.append("a game that always raises: given up after the fifth death, with its traceback")
    return {15: "; ".join(seen)}
