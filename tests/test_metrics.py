"""Records: written, trimmed at resume, and never a reason for a run to die."""

import csv
import dataclasses
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.messages import EpisodeStats, Spec
from common.metrics import COLUMNS, Metrics, Scores
from common.network import network_for
from common.policy_file import load_policy, mean_score_of, save_policy
from learner.dqn import UpdateStats
from learner.learner import Learner
from learner.records import Rates, Records
from tests.builders import chunk_of, config

COLUMNS_LINE = ",".join(COLUMNS) + "\n"


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def env_steps_of(run_dir: Path) -> list[int]:
    return [int(row["env_steps"]) for row in rows_of(run_dir)]


def points_of(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_rows_have_every_column_and_points_every_finite_value(tmp_path: Path) -> None:
    metrics = Metrics(config(), tmp_path)
    metrics.row("game", {"env_steps": 12, "score": -21.0, "loss": 0.123456789})
    metrics.scalars({"reward": -21.0, "reward_100": float("nan")}, 12)
    metrics.close()
    (row,) = rows_of(tmp_path)
    assert tuple(row) == COLUMNS
    assert (row["kind"], row["env_steps"], row["score"], row["loss"]) == (
        *("game", "12", "-21", "0.123457"),
    )
    assert points_of(tmp_path, "reward") == [(12, -21.0)]
    with pytest.raises(KeyError):
        points_of(tmp_path, "reward_100")


@pytest.mark.parametrize(
    "cut",
    ["period,1.0,4", "period,1,150,7,0,,,1,5,5,0,0.1,", "period,1,150,7,0,,,1,5,5,0,0.1,1.2\r"],
    ids=["columns missing", "the last one empty", "the line's end missing"],
)
def test_a_resumed_run_keeps_what_lies_before_its_checkpoint_and_nothing_after(
    tmp_path: Path, cut: str
) -> None:
    metrics = Metrics(config(), tmp_path)
    for env_steps in (100, 200, 300):
        metrics.row("period", {"env_steps": env_steps})
        metrics.scalars({"speed": float(env_steps)}, env_steps)
    metrics.close()
    with (tmp_path / "metrics.csv").open("a", newline="") as file:
        file.write(cut)  # of the last row, by a kill
    resumed = Metrics(config(), tmp_path, resume_env_steps=200)
    resumed.row("period", {"env_steps": 250})
    resumed.scalars({"speed": 250.0}, 250)
    resumed.close()
    assert env_steps_of(tmp_path) == [100, 200, 250]
    assert points_of(tmp_path, "speed") == [(100, 100.0), (200, 200.0), (250, 250.0)]


def test_a_full_disk_costs_rows_and_never_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    metrics = Metrics(config(), tmp_path)
    for _ in range(3):
        metrics.row("period", {"env_steps": 1})
        metrics.flush()
        assert metrics.error is not None
    (tmp_path / "metrics.csv").unlink()  # there is room again
    metrics.flush()
    assert metrics.error is None
    metrics.row("period", {"env_steps": 2})
    metrics.close()
    assert env_steps_of(tmp_path) == [2]


def test_a_row_that_was_cut_short_is_cut_off(tmp_path: Path) -> None:
    metrics = Metrics(config(), tmp_path)
    metrics.row("period", {"env_steps": 1})
    metrics.flush()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("period,1.0,4")
    metrics.error = OSError(28, "No space left on device")
    metrics.flush()
    metrics.row("period", {"env_steps": 2})
    metrics.close()
    assert env_steps_of(tmp_path) == [1, 2]


@pytest.mark.parametrize("left", [None, "", COLUMNS_LINE + "period,1.0,1,,"], ids=str)
def test_records_that_are_gone_or_older_after_trouble_are_gone_on_with_in_whole_rows(
    tmp_path: Path, left: str | None
) -> None:
    metrics = Metrics(config(), tmp_path)
    metrics.row("period", {"env_steps": 1})
    metrics.flush()
    metrics.error = OSError(5, "Input/output error")
    if left is None:
        (tmp_path / "metrics.csv").unlink()
    else:
        (tmp_path / "metrics.csv").write_text(left)
    metrics.flush()
    metrics.row("period", {"env_steps": 2})
    metrics.close()
    assert env_steps_of(tmp_path) == [2]
    assert (tmp_path / "metrics.csv").read_text().startswith(COLUMNS_LINE)


@pytest.mark.parametrize(
    "odd",
    [
        "a;b\n1;2\n",
        "env_steps\n5\n",
        COLUMNS_LINE + "period,1.0,5.0,7,0,,,1,5,5,0,1,1\n",
        COLUMNS_LINE + "period,1.0,5,7,0,,,1,5,5,0,1,1,one more\n",
        "new," + COLUMNS_LINE + "0,period,1.0,5,7,0,,,1,5,5,0,1,1\n",
    ],
)
def test_records_that_no_run_wrote_are_refused_on_resume_and_stay(tmp_path: Path, odd: str) -> None:
    (tmp_path / "metrics.csv").write_text(odd)
    with pytest.raises(ConfigError, match="is not as a run wrote it: move it away"):
        Metrics(config(), tmp_path, resume_env_steps=10)
    assert (tmp_path / "metrics.csv").read_text() == odd


def test_points_go_on_in_a_new_file_after_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(config(), tmp_path)
    metrics.scalars({"speed": 1.0}, 1)
    metrics.flush()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    broken = metrics._writer
    monkeypatch.setattr(broken, "add_scalar", full)
    metrics.scalars({"speed": 2.0}, 2)
    assert metrics.error is not None
    metrics.flush()
    metrics.scalars({"speed": 3.0}, 3)
    metrics.close()
    assert metrics._writer is not broken
    assert points_of(tmp_path, "speed") == [(1, 1.0), (3, 3.0)]
    assert sum(path.name.startswith("events") for path in tmp_path.iterdir()) == 2


def test_a_resume_without_room_for_its_records_is_one_sentence_and_leaves_them_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(config(), tmp_path)
    for env_steps in (100, 200):
        metrics.row("period", {"env_steps": env_steps})
    metrics.close()
    before = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "other").mkdir()
    other = Records(config(), tmp_path / "other", 0.0, None, 0, 0)
    saved = other.state_dict()
    other.metrics.close()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("common.run_folder.os.fsync", full)
    with pytest.raises(ConfigError, match=r"Cannot write the records in .*: No space left"):
        Records(config(), tmp_path, 0.0, saved, 150, 0)
    assert (tmp_path / "metrics.csv").read_text() == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_last_rates_are_of_the_time_of_learning_whatever_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("learner.records.time.monotonic", lambda: clock[0])
    learner = Learner(config(), tmp_path, resume=False, started=1000.0)
    learner.inserted, clock[0] = 1000, 1010.0
    learner.records.tick(learner, None)
    learner.inserted, clock[0] = 1400, 1012.0
    assert learner.records.ending.finished(1400, "Told to stop.")
    clock[0] = 1030.0  # the last checkpoint was long in writing
    assert learner.records.finish(learner, None, "Told to stop.")
    assert float(rows_of(tmp_path)[-1]["env_steps_per_second"]) == pytest.approx(1400 / 12, 1e-4)


def test_a_period_in_which_nothing_arrived_has_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("learner.records.time.monotonic", lambda: clock[0])
    learner = Learner(config(log_period_env_steps=100), tmp_path, False, started=1000.0)
    for learner.inserted, clock[0] in ((0, 1000.0), (1000, 1010.0), (2000, 1030.0)):
        learner.records.tick(learner, None)
    learner.records._period(learner, None)
    clock[0] = 1040.0
    learner.records._period(learner, None)
    learner.records.metrics.close()
    speeds = [float(row["env_steps_per_second"]) for row in rows_of(tmp_path)]
    assert speeds[-1] == 0.0 and 50.0 in speeds


def test_a_periods_figures_are_means_of_its_updates_and_rates_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("learner.records.time.monotonic", lambda: clock[0])
    settings = config(log_period_env_steps=100, frames_per_env_step=4)
    learner = Learner(settings, tmp_path, False, started=1000.0)
    learner.records.tick(learner, None)
    for n in (1.0, 2.0, 6.0):
        learner.records.updated(UpdateStats(loss=n, q_mean=10 * n, grad_norm=100 * n))
    learner.trainer.updates, learner.inserted, clock[0] = 30, 200, 1010.0
    learner.records.tick(learner, None)
    learner.records.updated(UpdateStats(5.0, 7.0, 9.0))  # of the next one
    learner.inserted, clock[0] = 300, 1020.0
    learner.records.tick(learner, None)
    learner.records.metrics.close()
    for tag, values in (
        ("train/loss", [3.0, 5.0]),
        ("train/q_mean", [30.0, 7.0]),
        ("train/grad_norm", [300.0, 9.0]),
        ("time/env_steps_per_s", [20.0, 10.0]),
        ("time/env_frames_per_s", [80.0, 40.0]),
        ("time/updates_per_s", [3.0, 0.0]),
        ("speed", [20.0, 10.0]),
    ):
        assert points_of(tmp_path, tag) == list(zip((200, 300), values, strict=True)), tag
    rows = rows_of(tmp_path)
    assert [(row["loss"], row["q_mean"]) for row in rows] == [("3", "30"), ("5", "7")]


def test_lock_steps_last_row_is_not_told_twice(tmp_path: Path) -> None:
    """Its second form would be of no time at all, in which nothing was done."""
    learner = Learner(config(actors=0, log_period_env_steps=100), tmp_path, False, started=0.0)
    for learner.inserted in (0, 100, 200):
        learner.records.tick(learner, None)
    assert learner.records.finish(learner, None, "done")
    assert env_steps_of(tmp_path) == [100, 200]


def test_lock_steps_rows_are_at_multiples_of_its_period_whatever_its_first_step_brings(
    tmp_path: Path,
) -> None:
    learner = Learner(config(actors=0, log_period_env_steps=100), tmp_path, False, started=0.0)
    for learner.inserted in (120, 150, 230):  # as of a run that is resumed just before the first
        learner.records.tick(learner, None)
    assert learner.records.finish(learner, None, "done")
    assert env_steps_of(tmp_path) == [120, 230]


def test_what_comes_in_just_after_a_period_is_no_burst() -> None:
    rates = Rates({"env_steps": 0.0}, least_seconds=1.0)
    now = time.monotonic()
    assert rates.per_second({"env_steps": 64.0}, now + 0.5) == {"env_steps": 0.0}
    assert rates.per_second({"env_steps": 1000.0}, now + 10)["env_steps"] == pytest.approx(100, 0.1)
    before = rates.per_second({"env_steps": 1064.0}, now + 10.01)
    assert before["env_steps"] == pytest.approx(100, 0.1)
    after = rates.per_second({"env_steps": 1500.0}, now + 20)
    assert after["env_steps"] == pytest.approx(50, 0.1)


def test_solved_needs_a_hundred_games_above_the_mark() -> None:
    scores = Scores()
    for _ in range(99):
        scores.add(21.0)
    assert not scores.solved(19.5) and not scores.is_new_best()
    scores.add(-100.0)
    assert scores.mean_100 == pytest.approx(19.79)
    assert scores.solved(19.5) and scores.is_new_best()
    assert not scores.solved(scores.mean_100)  # above it, not at it
    scores.best_mean_100 = scores.mean_100
    assert not scores.is_new_best()
    scores.add(-100.0)
    assert not scores.solved(19.5)


@pytest.mark.parametrize("scores", [[19.0, 20.0, 20.0], []])
def test_what_greedy_games_have_said_is_remembered_after_a_resume(
    tmp_path: Path, scores: list[float]
) -> None:
    settings, saved = config(reward=19.5, confirm_games=3), None
    for part, doubted in (("first", False), ("second", True)):
        (tmp_path / part).mkdir()
        records = Records(settings, tmp_path / part, 0.0, saved, 0, 0)
        assert records.ending.in_doubt == doubted
        for _ in range(0 if doubted else 100):
            records.game(EpisodeStats(20.0, 60), env_steps=1, updates=1)
        assert not records.confirm(scores, 1_000)
        saved = records.state_dict()
        records.metrics.close()


def test_a_best_policy_that_could_not_be_written_is_tried_again_after_the_next_game(
    tmp_path: Path,
) -> None:
    settings = config()
    records, network = Records(settings, tmp_path, 0.0, None, 0, 0), network_for(settings)
    obstacle = tmp_path / "best.safetensors"
    (obstacle / "full").mkdir(parents=True)

    def is_best(score: float) -> bool:
        return records.game(EpisodeStats(score, 60), env_steps=1, updates=1)

    assert [is_best(1.0) for _ in range(100)] == [False] * 99 + [True]
    records.save_policy(network, 1, 1)
    records.save_policy(network, 1, 1, "last")
    assert "best" in records._policy_errors  # saving another is not saving this one
    (obstacle / "full").rmdir()
    obstacle.rmdir()
    assert is_best(0.5)  # less than the mean that was not kept
    records.save_policy(network, 1, 1)
    assert not records._policy_errors
    assert mean_score_of(obstacle) == records.scores.best_mean_100 == pytest.approx(0.995)
    assert not is_best(0.5)
    records.metrics.close()


def test_a_best_policy_that_was_lost_is_kept_at_the_end_if_it_still_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(config(), tmp_path, resume=False, started=0.0)
    records, full = learner.records, [False]

    def save(*given: Any) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        save_policy(*given)

    def play(score: float) -> None:
        if records.game(EpisodeStats(score, 60), env_steps=1, updates=1):
            learner.save_policy()

    monkeypatch.setattr("learner.records.save_policy", save)
    for _ in range(100):
        play(1.0)
    full[0] = True
    play(21.0)
    assert records.scores.best_mean_100 == 1.0  # what is kept
    full[0] = False
    assert records.finish(learner, None, "done")
    assert mean_score_of(tmp_path / "best.safetensors") == pytest.approx(1.2)


def test_a_network_that_is_dead_is_told_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("learner.records.time.monotonic", lambda: clock[0])
    learner = Learner(config(), tmp_path, resume=False, started=1000.0)
    learner.insert(chunk_of(Spec.of(learner.config), 40, 0))
    learner.records.tick(learner, None)

    def told(seconds: float) -> int:
        clock[0] = 1000.0 + seconds
        learner.inserted += learner.config.log_period_env_steps
        learner.records.tick(learner, None)
        return capsys.readouterr().out.count("its units are dead")

    assert told(10) == 0  # nothing to see as yet
    learner.update()
    assert told(20) == 0
    with torch.no_grad():
        learner.trainer.online.first.weight.zero_()
        learner.trainer.online.first.bias.fill_(-1.0)
    learner.update()
    assert [told(30), told(60), told(91)] == [1, 0, 1]
    learner.records.metrics.close()


def after_games(run_dir: Path, scores: list[float], **settings: float) -> list[tuple[float, float]]:
    """Samples per insert, of at most 2, and step size, from 4e-4 to 1e-4, after each game."""
    rates = {"samples_per_insert": 2.0, "learning_rate": 4e-4, "learning_rate_final": 1e-4}
    wanted = config(**{"reward": 19.5, **rates, **settings})
    learner = Learner(wanted, run_dir, resume=False, started=0.0)
    found = []
    for i, score in enumerate(scores):
        chunk = chunk_of(Spec.of(wanted), 16, 100 * i, terminal=True)
        learner.insert(dataclasses.replace(chunk, episode=EpisodeStats(score, 16)))
        found.append((learner.limiter.samples_per_insert, learner.trainer.adam.learning_rate))
    learner.records.metrics.close()
    return found


def test_learning_does_not_rest_while_greedy_games_say_that_there_is_more_to_learn(
    tmp_path: Path,
) -> None:
    wanted = config(reward=19.5, confirm_games=1, samples_per_insert_mastered=0.5)
    learner, ratios = Learner(wanted, tmp_path, False, started=0.0), list[float]()
    for i in range(151):
        chunk = chunk_of(Spec.of(wanted), 16, 100 * i, terminal=True)
        learner.insert(dataclasses.replace(chunk, episode=EpisodeStats(20.0, 16)))
        learner.confirm(lambda *_: [19.0])
        ratios.append(learner.limiter.samples_per_insert)
    usual = wanted.samples_per_insert
    # Ten games, a hundred, fifty; and then the second time that they do not confirm it.
    assert ratios == [usual] * 9 + [0.5] * 90 + [usual] * 52
    learner.records.metrics.close()


def test_learning_rests_from_ten_games_at_the_mark_until_ten_are_below_the_reward(
    tmp_path: Path,
) -> None:
    scores = [21.0] * 10 + [11.0, 20.0, 17.0, 20.0, 26.0, 22.0]
    found = after_games(tmp_path, scores, samples_per_insert_mastered=0.5)
    last_tens = [21, 20, 19.9, 19.5, 19.4, 19.9, 20]  # nine say too little
    ratios = [0.5, 0.5, 0.5, 0.5, 2.0, 2.0, 0.5]
    assert [ratio for ratio, _ in found] == [2.0] * 9 + ratios
    sums = [sum(scores[i : i + 10]) for i in range(len(last_tens))]
    assert sums == pytest.approx([10 * mean for mean in last_tens])


@pytest.mark.parametrize(
    "settings",
    [
        {"samples_per_insert_mastered": 0.0},
        {"samples_per_insert_mastered": 3.0},
        {"reward": 20.5, "reward_mastered": 19.5},  # as after a resume that asks for more
    ],
)
def test_learning_goes_on_without_a_lower_ratio_for_it_and_where_more_is_asked_for(
    tmp_path: Path, settings: dict[str, float]
) -> None:
    found = after_games(tmp_path, [20.0] * 12, **settings)
    assert {ratio for ratio, _ in found} == {2.0}


def test_the_step_size_follows_the_scores_down_and_up(tmp_path: Path) -> None:
    scores = [-20.0] * 10 + [20.0] * 10 + [-20.0] * 10
    found = [rate for _, rate in after_games(tmp_path, scores, reward=20.0)]
    half_way = found[14]  # five of the last ten games lost, five won
    assert found[:10] == [4e-4] * 10  # nothing known of ten games yet, then the lowest
    assert half_way == found[24] == pytest.approx(2.5e-4)
    assert found[19] == pytest.approx(1e-4)
    assert found[29] == pytest.approx(4e-4)
    assert found[9:20] == sorted(found[9:20], reverse=True)
    assert found[19:] == sorted(found[19:])


@given(
    scores=st.lists(st.integers(-100, 100), min_size=10, max_size=40),
    reward=st.integers(-100, 100),
)
def test_progress_is_a_share_whatever_the_scores(scores: list[int], reward: int) -> None:
    told = Scores()
    for score in scores:
        told.add(score)
        assert 0.0 <= told.progress(reward) <= 1.0
    assert (told.progress(reward) == 1.0) == (sum(scores[-10:]) / 10 >= reward)


def test_before_100_games_the_best_policy_is_the_last_one(tmp_path: Path) -> None:
    for part in range(2):  # of a run that is left early each time
        learner = Learner(config(), tmp_path, resume=False, started=0.0)
        with torch.no_grad():
            learner.trainer.policy.first.weight.add_(part)
        assert learner.records.finish(learner, None, "told to stop")
    best, last = (load_policy(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    assert torch.equal(best.network.first.weight, last.network.first.weight)


@pytest.mark.parametrize("told", ["", "Told to stop."])
def test_the_time_of_a_run_ends_with_its_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("learner.records.time.monotonic", lambda: clock[0])
    learner = Learner(config(max_env_steps=5), tmp_path, resume=False, started=1000.0)
    clock[0] = 1060.0
    assert not learner.records.ending.finished(4, "")
    assert learner.records.ending.finished(4 if told else 5, told)
    clock[0] = 1090.0  # the last checkpoint was long in writing
    assert learner.records.finish(learner, None, told)
    assert json.loads((tmp_path / "result.json").read_text())["wall_seconds"] == 60.0


def test_a_best_policy_that_was_lost_and_beaten_by_the_one_kept_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(config(), tmp_path, resume=False, started=0.0)
    records = learner.records

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for _ in range(100):
        records.game(EpisodeStats(1.0, 60), env_steps=1, updates=1)
    learner.save_policy()
    assert records.scores.best_mean_100 == 1.0
    with monkeypatch.context() as patched:
        patched.setattr("learner.records.save_policy", full)
        assert records.game(EpisodeStats(2.0, 60), env_steps=1, updates=1)
        learner.save_policy()
    assert not records.game(EpisodeStats(-21.0, 60), env_steps=1, updates=1)
    assert records.finish(learner, None, "done")
    assert mean_score_of(tmp_path / "best.safetensors") == 1.0
