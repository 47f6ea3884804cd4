"""Checkpoints: exact, verified, and never worse than the one before."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

import launch
from actors.player import Player
from common.errors import Mismatch, NoCheckpoint
from common.messages import EpisodeStats, Spec
from common.network import state_vector
from common.policy_file import Policy
from learner import checkpoint, segments
from learner.checkpoint import (
    Checkpointer,
    Damaged,
    Snapshot,
    list_checkpoints,
    load_newest,
    verify,
)
from learner.dqn import with_prefix
from learner.replay import Replay, UniformSampler
from learner.state_json import from_json, to_json
from tests.builders import CATCH, chunk_of, config
from tests.catch import Catch

TIME_COLUMNS = ("wall_seconds", "env_steps_per_second", "updates_per_second")


def make_replay(chunks: int = 0) -> Replay:
    small = config(replay_transitions=256, learning_starts_transitions=64)
    replay = Replay(small, UniformSampler(np.random.default_rng(0)))
    for i in range(chunks):
        replay.add(chunk_of(Spec.of(small), 16, 20 * i, terminal=i % 3 == 0))
    return replay


def save(folder: Path, replay: Replay, env_steps: int, keep: int = 2) -> Checkpointer:
    checkpointer = Checkpointer(folder, replay, keep)
    checkpointer.base = next(iter(list_checkpoints(folder)), None)  # the one before
    tensors = {"online.w": torch.arange(5.0) + env_steps}
    state: dict[str, Any] = {"env_steps": env_steps, "bytes": b"\0\xff", "array": np.arange(3)}
    checkpointer.save_now(Snapshot(env_steps, tensors, state, list(replay.chunks)))
    return checkpointer


def load(
    folder: Path, replay: Replay, log: Callable[[str], None] = print
) -> tuple[dict[str, torch.Tensor], Any]:
    _, tensors, state = load_newest(folder, replay, check=lambda state: None, log=log)
    return tensors, state


def same_contents(a: Replay, b: Replay) -> bool:
    return list(a.chunks) == list(b.chunks) and all(
        (a.read_chunk(c).frames == b.read_chunk(c).frames).all()
        and (a.read_chunk(c).transitions == b.read_chunk(c).transitions).all()
        for c in a.chunks
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    replay, restored = make_replay(chunks=40), make_replay()
    save(tmp_path, replay, 700)
    tensors, state = load(tmp_path, restored)
    assert torch.equal(tensors["online.w"], torch.arange(5.0) + 700)
    assert state["env_steps"] == 700
    assert state["bytes"] == b"\0\xff"
    assert state["array"].tolist() == [0, 1, 2]
    assert same_contents(replay, restored)
    assert restored.end_id == replay.end_id
    assert restored._head == replay._head


def test_a_checkpoint_whose_transitions_reach_beyond_their_frames_is_not_used(
    tmp_path: Path,
) -> None:
    replay, said = make_replay(chunks=5), list[str]()
    save(tmp_path, replay, 100)
    replay.add(chunk_of_more(0))
    replay.transitions["span"][replay.end_id - 1] += 1  # as nothing that arrives may be
    save(tmp_path, replay, 200)
    tensors, _ = load(tmp_path, make_replay(), said.append)
    assert torch.equal(tensors["online.w"], torch.arange(5.0) + 100)
    assert "has a transition whose frames it has not" in said[0]


def test_segments_are_compressed_once_and_old_checkpoints_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_replay(chunks=10)
    save(tmp_path, replay, 100)
    packed: list[int] = []
    real = segments._pack_segment
    monkeypatch.setattr(
        segments, "_pack_segment", lambda r, chunks: packed.append(len(chunks)) or real(r, chunks)
    )
    for i in range(3):
        replay.add(chunk_of_more(i))
        save(tmp_path, replay, 200 + i)
    assert packed == [1, 1, 1]
    newest = list_checkpoints(tmp_path)
    assert [c.name for c in newest] == ["step-000000000202", "step-000000000201"]
    restored = make_replay()
    load(tmp_path, restored)
    assert same_contents(replay, restored)


def test_damage_to_an_old_segment_never_reaches_a_later_checkpoint(tmp_path: Path) -> None:
    replay = make_replay(chunks=10)
    save(tmp_path, replay, 100)
    damage_flip(next(list_checkpoints(tmp_path)[0].glob("replay-*")))
    replay.add(chunk_of_more(0))
    save(tmp_path, replay, 200)
    newest, before = list_checkpoints(tmp_path)
    verify(newest)
    damage_flip(next(newest.glob("replay-*")))
    with pytest.raises(Damaged):
        verify(before)  # by the first flip
    save(tmp_path, replay, 300)
    restored = make_replay()
    _, state = load(tmp_path, restored)
    assert state["env_steps"] == 300
    assert same_contents(replay, restored)


def test_a_checkpoint_that_loads_half_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)
    expected = list(replay.chunks)
    replay.add(chunk_of_more(0))
    save(tmp_path, replay, 200)
    restored = make_replay()
    real, calls = restored.restore, []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        real(*args)

    monkeypatch.setattr(restored, "restore", failing)
    _, state = load(tmp_path, restored)
    assert state["env_steps"] == 100
    assert list(restored.chunks) == expected


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power has done what was synced, and of the rest whatever it liked."""
    done: list[str] = []
    sizes: dict[str, int] = {}
    sync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        done.append(name)
        sizes[name] = os.fstat(descriptor).st_size
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"now {target.name}")
        return rename(self, target)

    monkeypatch.setattr("learner.checkpoint.os.fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    save(tmp_path, make_replay(chunks=10), 100)
    (checkpoint,) = list_checkpoints(tmp_path)
    *files, folder, named, parent = done
    assert sorted(files) == sorted(path.name for path in checkpoint.iterdir())
    for path in checkpoint.iterdir():
        assert sizes[path.name] == path.stat().st_size, path.name
    assert folder.startswith("unfinished-") and named == f"now {checkpoint.name}"
    assert parent == tmp_path.name


def chunk_of_more(i: int) -> Any:
    return chunk_of(Spec.of(config()), 16, 1_000 + 20 * i)


def test_a_ring_that_has_turned_over_comes_back_without_what_was_evicted(tmp_path: Path) -> None:
    replay = make_replay(chunks=14)
    save(tmp_path, replay, 1)
    for i in range(9):
        replay.add(chunk_of_more(i))
        save(tmp_path, replay, 2 + i)
        restored = make_replay()
        load(tmp_path, restored)
        assert same_contents(replay, restored)


def test_what_the_ring_overwrites_while_it_is_being_saved_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_replay(chunks=16)
    read = replay.read_chunk
    monkeypatch.setattr("learner.checkpoint.SEGMENT_CHUNKS", 4)

    def overwritten_meanwhile(stored: Any) -> Any:
        chunk = read(stored)
        if stored == before[1] and replay.first_id == before[0].first_id:
            replay.add(chunk_of_more(0))  # evicts the oldest, which was just read
        return chunk

    before = list(replay.chunks)
    monkeypatch.setattr(replay, "read_chunk", overwritten_meanwhile)
    assert save(tmp_path, replay, 1).error is None
    restored = make_replay()
    load(tmp_path, restored)
    assert list(restored.chunks) == before[1:]


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_remove(path: Path) -> None:
    path.unlink()


def damage_stray(path: Path) -> None:
    (path.parent / "stray").write_text("")


@pytest.mark.parametrize(
    "damage", [damage_flip, damage_truncate, damage_remove, damage_stray], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("file", ["MANIFEST.json", "state.json", "model.safetensors", "replay-*"])
def test_damage_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path: Path, file: str, damage: Any
) -> None:
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)
    replay.add(chunk_of_more(0))
    save(tmp_path, replay, 200)
    newest, before = list_checkpoints(tmp_path)
    damage(sorted(newest.glob(file))[-1])
    with pytest.raises(Damaged):
        verify(newest)
    said: list[str] = []
    _, state = load(tmp_path, make_replay(), log=said.append)
    assert state["env_steps"] == 100
    assert "step-000000000200 is not used" in said[0]
    damage(next(before.glob("state.json")))
    with pytest.raises(NoCheckpoint, match="verifies"):
        load(tmp_path, make_replay(), log=said.append)


def test_a_checkpoint_that_could_not_be_read_is_never_gone_on_with_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing fault of the disk: the run went on from the one before, so this one is history."""
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)
    replay.add(chunk_of_more(0))
    save(tmp_path, replay, 200)
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if "step-000000000200" in str(path):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    resumed = make_replay()
    _, state = load(tmp_path, resumed)
    monkeypatch.undo()
    assert state["env_steps"] == 100
    resumed.add(chunk_of_more(7))
    save(tmp_path, resumed, 150)
    restored = make_replay()
    _, state = load(tmp_path, restored)
    assert state["env_steps"] == 150
    assert same_contents(resumed, restored)


def test_a_checkpoint_passed_over_twice_at_one_step_is_no_obstacle(tmp_path: Path) -> None:
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)
    for _ in range(2):  # a run that stops at the same step again, and is damaged there again
        save(tmp_path, replay, 200)
        damage_flip(next((tmp_path / "step-000000000200").glob("model*")))
        _, state = load(tmp_path, make_replay())
        assert state["env_steps"] == 100
    assert (tmp_path / "unused-step-000000000200").is_dir()


def test_a_checkpoint_passed_over_goes_aside_where_an_older_one_there_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)
    save(tmp_path, replay, 200)
    damage_flip(next((tmp_path / "step-000000000200").glob("model*")))
    stays = tmp_path / "unused-step-000000000200"
    stays.mkdir()
    (stays / "held").touch()
    remove = checkpoint.shutil.rmtree

    def without_that(path: Path, **options: Any) -> None:
        if path != stays:
            remove(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", without_that)
    resumed = make_replay()
    load(tmp_path, resumed)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000000100"]
    assert (tmp_path / "unused-step-000000000200-2").is_dir()


def test_nothing_builds_on_a_checkpoint_passed_over_that_could_not_be_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)
    replay.add(chunk_of_more(0))
    save(tmp_path, replay, 200)
    damage_flip(tmp_path / "step-000000000200" / "state.json")  # its segments are whole

    def stays(*_: Any) -> None:
        raise OSError(16, "Device or resource busy")

    resumed, said = make_replay(), []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stays)
        base, _, state = load_newest(tmp_path, resumed, lambda state: None, said.append)
    assert (state["env_steps"], base.name) == (100, "step-000000000100")
    assert "cannot be put aside: [Errno 16]" in said[-1]
    resumed.add(chunk_of_more(7))  # another than the one under these ids there
    checkpointer = Checkpointer(tmp_path, resumed, keep=1)
    checkpointer.base = base
    checkpointer.save_now(Snapshot(150, {}, {"env_steps": 150}, list(resumed.chunks)))
    restored = make_replay()
    assert load(tmp_path, restored)[1]["env_steps"] == 150  # nor does it make this one old
    assert same_contents(resumed, restored)


def test_a_disk_that_fails_leaves_the_earlier_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_replay(chunks=5)
    save(tmp_path, replay, 100)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("learner.checkpoint._write_file", full)
    failed = save(tmp_path, replay, 200)
    assert failed.error is not None
    assert [c.name for c in list_checkpoints(tmp_path)] == ["step-000000000100"]
    assert len(list(tmp_path.iterdir())) == 1
    verify(list_checkpoints(tmp_path)[0])


def lock_step(run_dir: Path, *flags: str) -> int:
    small = "--network nips --learner-threads 1 --envs-per-actor 3 --chunk-transitions 16"
    small += " --replay-transitions 900 --learning-starts-transitions 200 --seed 1"
    small += " --log-period-env-steps 200 --publish-period-updates 3"
    words = ["--actors", "0", "--env", CATCH, "--run-dir", str(run_dir), *small.split(), *flags]
    return launch.main(words)


def rows(run_dir: Path, kind: str) -> list[dict[str, str]]:
    import csv

    with (run_dir / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in TIME_COLUMNS}
            for row in csv.DictReader(file)
            if row["kind"] == kind
        ]


def final_model(run_dir: Path) -> str:
    newest = list_checkpoints(run_dir / "checkpoints")[0]
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    return str(manifest["files"]["model.safetensors"])


@pytest.mark.parametrize("sampling", ["--no-prioritized", "--prioritized"])
def test_lock_step_interrupted_and_resumed_is_the_uninterrupted_run(
    tmp_path: Path, sampling: str
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert lock_step(straight, sampling, "--max-env-steps", "1500") == 0
    assert lock_step(broken, sampling, "--max-env-steps", "700") == 0
    for stop in ("1100", "1500"):
        assert launch.main(["--resume", str(broken), "--max-env-steps", stop]) == 0
    assert final_model(straight) == final_model(broken)
    assert rows(straight, "game") == rows(broken, "game")
    assert len(rows(straight, "game")) > 10
    told, until_a_stop = (rows(run, "period") for run in (straight, broken))
    at = [row["env_steps"] for row in until_a_stop]
    assert len(told) > 5 and [row for row in until_a_stop if row in told] == told
    assert len(at) == len(told) + 2, at  # where it was interrupted, too


def test_lock_step_is_solved_by_greedy_games_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where they say that it is not, it goes on the same each time, a resume or not between."""
    asked = []

    def play(policy: Policy, games: int, seed: int, _: Any) -> list[float]:
        asked.append((seed, state_vector(policy.network).sum()))
        return [-100.0 if len(asked) % 2 else 100.0] * games  # each run asks twice

    flags = ("--reward", "-99.5", "--confirm-games", "2")
    monkeypatch.setattr(launch, "play_greedily", play)
    assert lock_step(tmp_path / "straight", *flags) == 0
    between = str(int(rows(tmp_path / "straight", "game")[120]["env_steps"]))
    assert lock_step(tmp_path / "broken", *flags, "--max-env-steps", between) == 0
    assert not json.loads((tmp_path / "broken" / "result.json").read_text())["solved"]
    assert launch.main(["--resume", str(tmp_path / "broken"), "--max-env-steps", "0"]) == 0
    assert len(asked) == 4 and asked[:2] == asked[2:] and asked[0] != asked[1]
    assert final_model(tmp_path / "straight") == final_model(tmp_path / "broken")
    result = json.loads((tmp_path / "broken" / "result.json").read_text())
    assert result["solved"] and result["greedy_mean_score"] == 100 and result["games"] >= 150


def test_lock_step_plays_those_greedy_games(tmp_path: Path) -> None:
    assert lock_step(tmp_path, "--reward", "-100", "--confirm-games", "2") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["solved"] and -10 <= result["greedy_mean_score"] <= 10


def test_the_same_seed_gives_the_same_run_and_another_gives_another(tmp_path: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert lock_step(tmp_path / name, "--max-env-steps", "600", "--seed", seed) == 0
    for kind in ("game", "period"):
        assert rows(tmp_path / "a", kind) == rows(tmp_path / "b", kind)
    assert final_model(tmp_path / "a") == final_model(tmp_path / "b")
    assert final_model(tmp_path / "a") != final_model(tmp_path / "c")


def test_a_checkpoint_of_another_network_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock_step(tmp_path, "--max-env-steps", "300") == 0
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"network": "nips"', '"network": "nature"'))
    assert launch.main(["--resume", str(tmp_path)]) == 3
    expected = "is of another game or network: its network is 'nips', this run's is 'nature'."
    assert expected in capsys.readouterr().err


def test_samples_that_are_owed_are_owed_still_after_a_resume(tmp_path: Path) -> None:
    from learner.learner import Learner

    settings = config(samples_per_insert=2.0, samples_per_insert_mastered=0.5, reward=0.55)
    learner = Learner(settings, tmp_path, False, time.monotonic())
    for i in range(60):
        chunk = chunk_of(Spec.of(settings), 16, 20 * i, terminal=True)
        score = EpisodeStats(float(i >= 20), 16)
        learner.insert(dataclasses.replace(chunk, episode=score))
    assert learner.limiter.samples_per_insert == 0.5  # since game 26, at 416 transitions
    learner.save_now()
    learner.records.metrics.close()
    resumed = Learner(settings, tmp_path, True, time.monotonic())
    assert resumed.limiter == learner.limiter
    assert resumed.limiter.may_sample(960, 2 * (416 - 200) + (960 - 416) // 2)
    resumed.records.metrics.close()
    other = dataclasses.replace(settings, samples_per_insert_mastered=0.25)
    changed = Learner(other, tmp_path, True, time.monotonic())
    assert changed.limiter == learner.limiter.at_ratio(0.25, 960)
    changed.records.metrics.close()


def test_the_step_size_is_the_same_after_a_resume(tmp_path: Path) -> None:
    from learner.learner import Learner

    settings = config(reward=2.0, learning_rate=4e-4, learning_rate_final=2e-4)
    learner = Learner(settings, tmp_path, False, time.monotonic())
    for i in range(120):  # the lowest mean, 0, is of games beyond the last 100
        chunk = chunk_of(Spec.of(settings), 16, 20 * i, terminal=True)
        score = EpisodeStats(float(i >= 10), 16)
        learner.insert(dataclasses.replace(chunk, episode=score))
    learner.save_now()
    learner.records.metrics.close()
    resumed = Learner(settings, tmp_path, True, time.monotonic())
    assert resumed.trainer.adam.learning_rate == pytest.approx(3e-4)
    resumed.records.metrics.close()


def test_a_run_whose_ring_was_lost_fills_it_again(tmp_path: Path) -> None:
    """Otherwise nothing to sample and nobody allowed to insert would be the end of it."""
    from learner.learner import Learner

    settings = config(actors=1, run_dir=str(tmp_path))
    learner = Learner(settings, tmp_path, False, time.monotonic())
    learner.inserted, learner.sampled = 5_000, 100
    assert len(learner.replay) == 0
    assert not learner.may_sample()
    assert learner.insert_limit() >= learner.inserted + settings.batch_size
    learner.records.metrics.close()


def test_lock_step_saves_when_its_terminal_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
    play, hang_up = Catch.step, iter([*[False] * 300, True])

    def step(self: Catch, action: int) -> Any:
        if next(hang_up, False):
            os.kill(os.getpid(), signal.SIGHUP)
        return play(self, action)

    monkeypatch.setattr(Catch, "step", step)
    assert lock_step(tmp_path, "--max-env-steps", "5000") == 130
    assert json.loads((tmp_path / "result.json").read_text())["reason"] == "Told to stop."


def test_lock_step_that_is_done_is_not_interrupted_while_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learner import process

    finish = process.finish

    def told_meanwhile(*arguments: Any) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return finish(*arguments)

    monkeypatch.setattr(process, "finish", told_meanwhile)
    assert lock_step(tmp_path, "--max-env-steps", "300") == 0


@pytest.mark.parametrize(
    "writer", ["learner.checkpoint._write_file", "learner.records.replace_file"]
)
def test_a_last_save_that_fails_is_told_and_ends_with_1(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, full)
    assert lock_step(tmp_path, "--max-env-steps", "300") == 1
    said = capsys.readouterr().out
    assert "No space left on device" in said and "Training goes on" not in said


def test_lock_step_with_a_game_that_cannot_be_saved_says_so_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = launch.main(
        ["--actors", "0", "--env", "tests.stamped:Stamped-v0", "--run-dir", str(tmp_path)]
    )
    assert code == 2
    assert "Stamped cannot be played in lock-step" in capsys.readouterr().err
    assert not (tmp_path / "config.json").exists()


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `self.np_random.integers(5)` is, and easily kept."""
    monkeypatch.setattr(Catch, "get_state", lambda self: {"column": np.int64(3)})
    code = launch.main(["--actors", "0", "--env", CATCH, "--run-dir", str(tmp_path)])
    assert code == 2
    assert "int64 does not belong in a checkpoint; its get_state()" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        ({1: 2}, "the key 1"),
        ({"cells": [{"base64": "AAAA"}]}, "the key 'base64'"),
        ({"cells": [np.array([None])]}, "ndarray"),
        ({"cells": np.zeros(2, [("x", "<i4"), ("y", "<f8")])}, "ndarray"),
    ],
)
def test_a_state_that_would_come_back_as_another_is_refused_too(
    state: dict[Any, Any],
    refused: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Catch, "get_state", lambda self: state)
    assert lock_step(tmp_path, "--max-env-steps", "100") == 2
    assert f"{refused} does not belong in a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "array",
    [np.ma.masked_array([1, 2], [True, False]), np.array(["a"], np.dtypes.StringDType())],
    ids=["masked", "strings of any length"],
)
def test_arrays_that_are_more_than_their_bytes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="does not belong in a checkpoint"):
        to_json({"array": array})


def test_a_games_arrays_come_back_as_they_were() -> None:
    grid = np.arange(6, dtype=np.int32).reshape(2, 3)
    state = {"grid": grid, "scalar": np.array(2.5), "none": np.zeros((0, 4), np.uint8)}
    back = from_json(to_json(state))
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert np.array_equal(back[name], array)
    back["grid"] += 1  # which belongs to the game again


def test_lock_step_plays_what_it_has_learned_with_the_epsilon_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, play = [], Player.step

    def step(self: Player, epsilon: float) -> Any:
        seen.append(epsilon)
        return play(self, epsilon)

    monkeypatch.setattr(Player, "step", step)
    flags = ("--precision", "float32", "--epsilon-decay-env-steps", "300", "--epsilon-final", "0.1")
    assert lock_step(tmp_path, "--max-env-steps", "600", *flags) == 0
    assert (seen[0], seen[-1]) == (1.0, 0.1)
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    tensors = load_tensors((newest / "model.safetensors").read_bytes())
    policy = with_prefix(tensors, "policy.")
    assert policy
    for name, tensor in policy.items():  # since the last update, 20 of which make a version
        assert torch.equal(tensor, tensors[f"player.{name}"]), name


def test_lock_step_saves_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, play = [0], Player.step  # of the loop, in place of seconds

    def step(self: Player, epsilon: float) -> Any:
        turns[0] += 1
        return play(self, epsilon)

    monkeypatch.setattr(Player, "step", step)
    monkeypatch.setattr("learner.learner.time", SimpleNamespace(monotonic=lambda: turns[0]))
    flags = ("--checkpoint-period-seconds", "100", "--checkpoints-kept", "500")
    assert lock_step(tmp_path, "--max-env-steps", "900", *flags) == 0
    assert turns[0] > 300
    assert len(list_checkpoints(tmp_path / "checkpoints")) == turns[0] // 101 + 1  # and at the end


def test_a_checkpoint_of_another_version_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "FORMAT", 5)
        save(tmp_path, make_replay(chunks=2), 100)
    with pytest.raises(Mismatch, match=r"another version of Volley \(format 5, this version reads"):
        load(tmp_path, make_replay())


def test_a_long_last_save_shows_life_all_the_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SEGMENT_CHUNKS", 1)
    replay, beats = make_replay(chunks=10), []
    checkpointer = Checkpointer(tmp_path, replay, 2)
    for number in (1, 2):  # packed, then copied
        before = len(beats)
        snapshot = Snapshot(number, {"w": torch.zeros(1)}, {}, list(replay.chunks))
        checkpointer.save_now(snapshot, lambda: beats.append(None))
        assert len(beats) - before > len(replay.chunks)


def test_a_save_that_fails_leaves_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "SEGMENT_CHUNKS", 1)
    monkeypatch.setattr(checkpoint, "cores", lambda: 2)
    monkeypatch.setattr(checkpoint, "_write_file", full)
    before = set(threading.enumerate())
    failed = save(tmp_path, make_replay(chunks=10), 1)
    assert isinstance(failed.error, OSError)
    assert set(threading.enumerate()) <= before
