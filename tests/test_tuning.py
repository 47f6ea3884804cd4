"""The tuning tools on hand-made records: what they read off a run, keep of it, and leave out."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.command_line import parse
from common.errors import ConfigError
from common.metrics import COLUMNS
from common.presets import make_config
from tests.builders import config
from tuning import branches, gpu_bench, gpu_run, packages, probe, trials
from tuning.results import Game, Run, games_of, keep, runs_in, table, thinned
from tuning.variants import ABLATION, Variant


def a_run(scores: list[float], variant: str = "pong") -> Run:
    """Games that end one after another, of 6 s, 1,000 env steps and 600 updates each."""
    games = [Game(i / 10, 1_000 * i, 600 * i, s) for i, s in enumerate(scores, start=1)]
    return Run(variant, "seed-7", games)


def write_run(run_dir: Path, scores: list[float], **result: Any) -> None:
    """The files of a finished run: a game every 2 s, a period row every 10 s."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for i, score in enumerate(scores, start=1):
            row = {"kind": "game", "wall_seconds": 2 * i, "env_steps": 1_000 * i, "games": i}
            writer.writerow(row | {"updates": 10 * i, "score": score, "policy_lag_updates": 40})
            if i % 5 == 0:
                writer.writerow(row | {"kind": "period", "updates": 10 * i, "loss": 0.5})
    settings = config(run_dir=str(run_dir))
    (run_dir / "config.json").write_text(settings.to_json())
    about = {"seed": 7, "preset": "pong", "env_steps": 1_000 * len(scores), "updates": 10}
    (run_dir / "result.json").write_text(json.dumps(about | result))


def test_a_level_is_reached_by_the_first_hundred_games_whose_mean_exceeds_it() -> None:
    run = a_run([-21.0] * 90 + [9.0] * 90)
    assert run.reached(-18.0) == run.games[100]  # of 11 games won; 10 make -18, which is not more
    assert run.reached(6.0) is None  # what the last hundred come to, and no more
    assert a_run([21.0] * 99).reached(-21.0) is None  # ninety-nine games are not a hundred


def test_a_level_that_is_reached_at_once_is_reached_with_the_hundredth_game() -> None:
    run = a_run([20.0] * 120)
    assert run.reached(19.5) == run.games[99]


def test_a_game_is_mastered_with_the_first_ten_at_the_solved_level() -> None:
    run = a_run([-21.0] * 5 + [19.0, 20.0] * 10)
    assert run.mastered() == run.games[14]  # at 19.5, which "solved" would have to exceed
    assert run.mastered(20.0) is None
    assert a_run([21.0] * 9).mastered() is None


@pytest.mark.parametrize(
    ("settings", "result", "game"),
    [
        ({}, {"solved": True, "wall_seconds": 240.001}, 120),  # asked at the 100th, too, in vain
        ({}, {"solved": False, "wall_seconds": 300.0}, None),
        ({"confirm_games": 0}, {"solved": True, "wall_seconds": 240.001}, 100),
        ({"reward": 20.5}, {"solved": False, "wall_seconds": 300.0}, 100),  # of another level
        (None, {"solved": True, "wall_seconds": 240.001}, 100),  # nothing known of it
    ],
)
def test_a_run_is_solved_when_the_greedy_games_that_confirm_it_are_asked_for(
    tmp_path: Path, settings: dict[str, Any] | None, result: dict[str, Any], game: int | None
) -> None:
    write_run(tmp_path / "run", [20.0] * 125, **result)
    path = tmp_path / "run" / "config.json"
    if settings is None:
        path.unlink()
    else:
        path.write_text(make_config("pong", **settings).to_json())
    (run,) = runs_in(tmp_path)
    assert run.solved() == (game and run.games[game - 1])
    assert len(run.games) == (120 if game == 120 else 125)  # what comes later is not of the run
    assert run.reached(19.5) == run.games[99]
    assert (" 1 of 1 solved" in table([run])) == (game is not None)


def test_the_game_that_solved_a_long_run_is_found_by_its_rounded_time() -> None:
    games = [Game(1234.56 / 60, 1_000 * i, 10 * i, 20.0) for i in range(1, 101)]  # of 1234.564
    assert Run("pong", "seed-7", games, 1234.564).solved() == games[-1]
    assert Run("pong", "seed-7", games, 1234.6).solved() is None


def test_the_mean_at_the_end_is_of_a_hundred_games_or_of_all() -> None:
    assert a_run([-21.0] * 50 + [1.0] * 100).mean_at_end() == 1.0
    assert a_run([-21.0, 1.0]).mean_at_end() == -10.0


def test_thinning_keeps_every_score_and_one_period_row_a_minute(tmp_path: Path) -> None:
    write_run(tmp_path, [float(i) for i in range(120)])  # four minutes
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = thinned(csv.DictReader(file))
    games = [row for row in rows if row["kind"] == "game"]
    assert [float(row["score"]) for row in games] == [float(i) for i in range(120)]
    assert all("policy_lag_updates" not in row for row in games)
    periods = [row for row in rows if row["kind"] == "period"]
    assert [float(row["wall_seconds"]) for row in periods] == [60.0, 120.0, 180.0, 240.0]
    assert all(row["loss"] == "0.5" for row in periods)


def test_of_a_run_that_goes_on_only_whole_rows_are_read(tmp_path: Path) -> None:
    write_run(tmp_path, [20.0, 21.0])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("game,6,3000,30,3,-2")  # of -21
    assert [game.score for game in games_of(tmp_path)] == [20.0, 21.0]


def test_a_kept_run_tells_what_the_run_told_and_not_where_it_was(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [-21.0] * 60 + [3.0] * 60)
    keep(tmp_path / "run", tmp_path / "kept" / "slow" / "seed-7")
    kept = tmp_path / "kept" / "slow" / "seed-7"
    sizes = [(folder / "metrics.csv").stat().st_size for folder in (kept, tmp_path / "run")]
    assert sizes[0] < 0.9 * sizes[1]
    assert str(tmp_path) not in (kept / "config.json").read_text()
    (before,), (after,) = runs_in(tmp_path / "run"), runs_in(tmp_path / "kept")
    assert (before.variant, after.variant) == ("pong", "slow")
    assert before.games == after.games
    assert after.name == "seed-7"


def test_the_table_has_a_row_per_run_that_finished_a_game() -> None:
    runs = [a_run([score] * 120) for score in (-14.0, 20.0)]
    runs += [a_run([-21.0] * 5, "book"), a_run([], "none")]
    lines = table(runs).splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1 and not lines[5]
    # 120 games took twelve minutes; the second was mastered after ten, one minute.
    levels = "10.0 / 100 | 10.0 / 100 | 10.0 / 100 | 1.0 / 10 | 10.0 / 100"
    assert lines[2:5] == [
        "| `pong` | seed-7 | 10.0 / 100 | - | - | - | - | -14.0 | 100 | 167 |",
        f"| `pong` | seed-7 | {levels} | +20.0 | 100 | 167 |",
        "| `book` | seed-7 | - | - | - | - | - | -21.0 | 100 | 167 |",
    ]
    assert lines[-3:] == [
        "- `pong`: 1 of 2 solved",
        "- `book`: 0 of 1 solved",
        "- `none`: 0 of 1 solved",
    ]
    slower = [
        dataclasses.replace(game, env_steps=10_000 + game.env_steps) for game in runs[1].games
    ]
    late = Run("late", "seed-7", [*runs[1].games[:10], *slower[10:]])
    assert table([late]).splitlines()[2].endswith("| 100 | 167 |")  # what comes later is no part
    both = table([a_run([20.0] * games) for games in (100, 120)])
    assert both.endswith("- `pong`: 2 of 2 solved, median 10.0 minutes")


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        ("slow:learning_rate=1e-4,n_step=3", "slow", ["--learning-rate", "1e-4", "--n-step", "3"]),
        ("double=true,dueling=False", "double=true,dueling=False", ["--double", "--no-dueling"]),
        ("plain:", "plain", []),
        ("standardize=false", "standardize=false", ["--no-standardize"]),
        ("pong", "pong", []),
        ("n=1", "n=1", ["--n-step", "1"]),
    ],
)
def test_a_variant_is_a_name_and_flags(text: str, name: str, flags: list[str]) -> None:
    variant = Variant.parse(text)
    assert variant.name == name
    assert variant.flags() == flags
    parse(variant.flags())


@pytest.mark.parametrize(
    "text", ["env=ALE/Pong-v5", "../up:n_step=1", "a:n_step", "pung", ":seed=1", "n=7"]
)
def test_a_variant_that_cannot_be_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"\w"):
        Variant.parse(text)


def test_every_variant_of_the_ablation_differs_from_the_preset() -> None:
    configs = [parse(variant.flags()).config for variant in ABLATION]
    assert len({variant.name for variant in ABLATION}) == len(ABLATION)
    assert len(set(configs)) == len(configs)


def test_runs_go_seed_by_seed_and_those_with_a_result_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def play(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        run_dir = Path(command[command.index("--run-dir") + 1])
        write_run(run_dir, [-21.0], seed=int(command[command.index("--seed") + 1]))
        ran.append(command)
        return subprocess.CompletedProcess(command, int(len(ran) == 2))  # the second one fails

    monkeypatch.setattr(subprocess, "run", play)
    variants = [Variant("pong"), Variant("n=1", {"n_step": "1"})]
    assert [(v.name, seed) for v, seed in trials.missing(tmp_path, variants, [1, 2])] == [
        *(("pong", 1), ("n=1", 1), ("pong", 2), ("n=1", 2)),
    ]
    trials.run_missing(tmp_path, variants, [1, 2], minutes=10.0)
    assert [(v.name, seed) for v, seed in trials.missing(tmp_path, variants, [1, 2])] == [
        ("n=1", 1)
    ]
    trials.run_missing(tmp_path, variants, [1, 2], minutes=10.0)
    assert len(ran) == 5 and "--n-step" in ran[4]
    assert not (tmp_path / ".unfinished").exists()
    assert [(run.variant, run.name) for run in runs_in(tmp_path)] == [
        *(("n=1", "seed-1"), ("n=1", "seed-2"), ("pong", "seed-1"), ("pong", "seed-2")),
    ]


def test_a_wrong_setting_ends_the_series_before_its_first_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch-size"):
        trials.run_missing(tmp_path, [Variant("pong"), Variant.parse("batch_size=0")], [1], 10.0)
    assert not list(tmp_path.iterdir())


LAUNCHED = """
import json, signal, sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
flag, value, *rest = sys.argv[1:]
if flag == "--resume":
    run_dir, begin = Path(value), 12
    config = json.loads((run_dir / "config.json").read_text())
    few = config["samples_per_insert_mastered"] == 0.25
    scores = [20.0] * 100 if few else [20.0] * 60 + [14.0]
else:
    run_dir, begin = Path(rest[rest.index("--run-dir") + 1]), 0
    scores = [-21.0, -21.0] + [20.0] * (9 if value == "3" else 10)
    for file in (Path(__file__).parent / "template").iterdir():
        (run_dir / file.name).write_text(file.read_text())
with (run_dir / "metrics.csv").open("a") as file:
    for i, score in enumerate(scores, start=begin + 1):
        print("game", 2 * i, 1_000 * i, 10 * i, i, score, *[""] * 7, sep=",", file=file)
if flag == "--seed" and value != "3":
    signal.sigwait([signal.SIGINT])
    sys.exit(130)
"""


def test_variants_go_on_from_one_state_in_turn_and_those_with_a_result_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "template", [])
    (tmp_path / "launch.py").write_text(LAUNCHED)
    monkeypatch.setattr(branches, "LAUNCH", tmp_path / "launch.py")
    monkeypatch.setattr(branches, "LOOK_SECONDS", 0.02)
    words = [str(tmp_path / "kept"), "--variant", "pong", "--variant"]
    words += ["few:samples_per_insert_mastered=0.25", "--seeds", "1", "2", "3"]
    assert branches.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        *("until mastery, seed 1", "pong, seed 1", "few, seed 1"),
        *("until mastery, seed 2", "few, seed 2", "pong, seed 2"),
        *("until mastery, seed 3", "Left out: not mastered in 8 minutes"),
    ]
    assert lines[10:] == [
        "| `few` | seed-1 | 200 | 100,000 | 100 | 0 | +20 |",
        "| `few` | seed-2 | 200 | 100,000 | 100 | 0 | +20 |",
        "| `pong` | seed-1 | > 122 | 61,000 | 61 | 1 | +14 |",
        "| `pong` | seed-2 | > 122 | 61,000 | 61 | 1 | +14 |",
        "",
        "- `few`: 2 of 2 solved",
        "- `pong`: 0 of 2 solved",
    ]
    assert branches.main(words[:-1]) == 0  # not again
    assert capsys.readouterr().out.splitlines() == lines[8:]
    assert not (tmp_path / "kept" / ".unfinished").exists()


def test_a_mean_of_branches_is_over_the_seeds_that_every_variant_solved() -> None:
    def branch(variant: str, name: str, scores: list[float]) -> Run:
        return dataclasses.replace(a_run([20.0] * 10 + scores, variant), name=name)

    runs = [branch("mastered", name, []) for name in ("seed-1", "seed-2")]
    runs += [branch("slow", name, [20.0] * 90) for name in ("seed-1", "seed-2")]
    runs += [branch("poor", "seed-1", [5.0] * 90), branch("poor", "seed-2", [20.0] * 100)]
    lines = branches.table(runs).splitlines()
    assert lines[-2:] == [
        "- `slow`: 2 of 2 solved; of the 1 that every variant solved a mean of 540.0 s",
        "- `poor`: 1 of 2 solved; of the 1 that every variant solved a mean of 600.0 s",
    ]


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        ("mastered:double=true", "is where all go on from"),
        ("n=3", "n_step cannot change within a run"),
        ("longer:policy_average_updates=2000", "policy_average_updates cannot change within"),
    ],
)
def test_a_variant_that_cannot_go_on_from_a_state_is_refused_first(
    variant: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert branches.main([str(tmp_path), "--variant", variant]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_by_itself_is_no_state_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "launch.py"
    monkeypatch.setattr(branches, "LAUNCH", script)
    for code, why in ((130, "not mastered"), (1, "exit code 1\nbroken")):
        script.write_text(f"print('broken'); raise SystemExit({code})")
        assert branches.main([str(tmp_path / "kept"), "--seeds", "1"]) == 0
        assert f"Left out: {why}" in capsys.readouterr().out
        assert not list((tmp_path / "kept").iterdir())


def test_the_probe_learns_the_rewards_of_random_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "WINDOW_UPDATES", 20)
    plain = config(replay_transitions=4_000, learning_starts_transitions=32, double=False)
    scaled = config(replay_transitions=4_000, learning_starts_transitions=32, standardize=False)
    replay = probe.random_play(plain, env_steps=500)
    windows = list(probe.learning([plain, scaled], replay, updates=100))
    assert [updates for updates, _ in windows] == [20, 40, 60, 80, 100]
    assert all(len(losses) == 2 for _, losses in windows)
    assert windows[-1][1][0] < 0.5 * probe.loss_of_a_constant(replay) < windows[0][1][0]


def test_the_probe_refuses_a_variant_that_needs_other_data() -> None:
    with pytest.raises(ConfigError, match="n_step"):
        probe.require_same_data(config(n_step=3), config(n_step=1), "n=1")


class Player:
    """Stands in for `launch.py eval`."""

    def __init__(self, command: list[str], **_: Any) -> None:
        self.policy = Path(command[command.index("eval") + 1]).read_text()
        self.returncode = -9 if self.policy == "seed 2" else 0

    def communicate(self, timeout: float) -> tuple[str, str]:
        return ("", "") if self.returncode else (f"scores +21\nmean of {self.policy}\n", "")


def test_a_gpu_session_shares_its_time_survives_a_failure_and_reports_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, granted = [600.0], []

    def play(flags: list[str], run_dir: Path, seconds: float, _: dict[str, str]) -> str:
        granted.append(seconds)
        seed = int(flags[flags.index("--seed") + 1])
        facts = {"reason": "Solved!", "wall_seconds": 60.0, "env_steps_per_second": 20_000.0}
        facts |= {"updates_per_second": 500.0, "measured_samples_per_insert": 1.6}
        facts |= {"captured_updates": seed == 0}
        write_run(run_dir, [20.0] * 100, seed=seed, **facts)
        (run_dir / "console.log").write_text("what it said")
        (run_dir / "best.safetensors").write_text(f"seed {seed}")
        left[0] -= seconds if seed == 1 else 60.0
        return "exit code 1\nout of memory" if seed == 1 else ""

    monkeypatch.setattr(gpu_run, "train", play)
    monkeypatch.setattr(subprocess, "Popen", Player)
    monkeypatch.setattr(gpu_run.Session, "left", property(lambda _: left[0]))
    session = gpu_run.Session(tmp_path / "out", tmp_path, {}, 600.0)
    session.run([(gpu_run.GPU, seed) for seed in (0, 1, 2)], games=30)
    # Of 600 s, 90 are for the greedy games, and 120 for each run that is to come.
    assert granted == [270.0, 330.0, 120.0]
    assert left[0] >= gpu_run.EVALUATION_SECONDS
    report = (tmp_path / "out" / "report.md").read_text()
    assert "--cuda --replay-device cuda" in report
    assert "- `gpu`: 2 of 2 solved, median 3.3 minutes" in report
    assert "1.60 samples per insert, captured" in report  # seed 0
    assert "1.60 samples per insert, kernel by kernel" in report  # seed 2
    assert "- gpu/seed-0: mean of seed 0" in report
    assert "gpu/seed-2:\n```\nIts greedy games ended with exit code -9.\n```" in report
    assert "Trouble with gpu/seed-1:\n```\nexit code 1\nout of memory" in report
    for name in ("console.log", "metrics.csv", "best.safetensors"):  # of a run in trouble too
        assert (tmp_path / "out" / "gpu" / "seed-1" / name).exists()
    assert not list((tmp_path / "gpu").glob("seed-*"))


def test_the_settings_for_a_gpu_and_for_a_trial_without_are_valid() -> None:
    gpu_run.check([gpu_run.GPU, gpu_run.CPU])


BENCH = """
import sys, time
from pathlib import Path
from benchmarks.measure import Row, as_json

words = sys.argv[1:]
rows = [Row(int(words[1]), " ".join(words), "updates/s", "a graph", None, [95.0], [100.0])]
Path(words[words.index("--json") + 1]).write_text(as_json(rows, {}))
print("a line of the log", flush=True)
try:
    time.sleep(SECONDS)
except KeyboardInterrupt:
    time.sleep(STUBBORN_SECONDS)
    raise SystemExit(130)
raise SystemExit(CODE)
"""


@pytest.mark.parametrize(
    ("takes", "stubborn", "code", "trouble"),
    [
        (0.0, 0.0, 0, ""),
        (0.0, 0.0, 1, "exit code 1"),
        (60.0, 0.0, 0, "interrupted: "),
        (60.0, 60.0, 0, "interrupted: "),
    ],
)
def test_benchmarks_end_in_time_and_what_they_had_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    takes: float,
    stubborn: float,
    code: int,
    trouble: str,
) -> None:
    settings = {"STUBBORN_SECONDS": stubborn, "SECONDS": takes, "CODE": code}
    script = BENCH
    for name, value in settings.items():
        script = script.replace(name, str(value))
    (tmp_path / "launch.py").write_text(script)
    monkeypatch.setattr(gpu_bench, "LAUNCH", tmp_path / "launch.py")
    monkeypatch.setattr(gpu_bench, "INTERRUPT_SECONDS", 0.5)
    root = str(Path(gpu_run.__file__).parent.parent)
    began = time.monotonic()
    session = gpu_run.Session(
        tmp_path / "out", tmp_path, os.environ | {"PYTHONPATH": root}, began + 4.0
    )
    session.machine = "one GPU"
    session.bench(gpu_bench.ROWS)
    assert time.monotonic() - began < 8.0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "one GPU" in report and "`launch.py bench 16 15 14`" in report
    assert "| 16 | bench 16 15 14 --json " in report and "| a graph: 100 | 0.95 |" in report
    assert (session.troubles == {}) == (trouble == "")
    assert f"Trouble with bench:\n```\n{trouble}" in report or not trouble
    assert ("a line of the log" in report) == bool(trouble)


def test_the_report_says_when_there_was_no_time_for_any_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = gpu_run.Session(tmp_path / "out", tmp_path, dict(os.environ), time.monotonic())
    monkeypatch.setattr(gpu_bench, "measure", lambda *_: "interrupted")
    session.bench(["14"])
    assert "No row was measured." in (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "out" / "bench.json").write_text('{"rows": [')
    session.bench(["14"])
    assert "bench.json is not whole" in (tmp_path / "out" / "report.md").read_text()


def test_a_session_there_can_test_first_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "test_one.py"
    failing.write_text("def test_one(): assert not 'captured'\n\ndef test_other(): pass\n")
    monkeypatch.setattr(gpu_run, "GPU_TESTS", failing)
    later = time.monotonic() + 60.0
    session = gpu_run.Session(tmp_path / "out", tmp_path, dict(os.environ), later)
    session.test()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "1 failed, 1 passed" in report
    assert "Trouble with the tests:\n```\nexit code 1" in report and "'captured'" in report


def test_a_call_unpacks_tests_and_prints_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing in the archive: what a run needs is here already."""
    with tarfile.open(tmp_path / "packages.tar.xz", "w:xz"):
        pass
    monkeypatch.setattr(gpu_run, "GPU_TESTS", tmp_path / "test_one.py")
    out = tmp_path / "out"
    words = ["test", str(out), "--packages", str(tmp_path / "packages.tar.xz"), "--minutes", "2"]
    for verdict, code in (("True", 0), ("False", 1)):
        gpu_run.GPU_TESTS.write_text(f"def test_one(): assert {verdict}\n")
        assert gpu_run.main([*words, "--cpu"]) == code
        assert (out / "report.md").read_text() in capsys.readouterr().out
        shutil.rmtree(out)
    (tmp_path / "packages.tar.xz").write_bytes(b"")
    assert gpu_run.main([*words, "--cpu"]) == 1
    assert "is not what `pack` makes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "seconds", "told"),
    [
        ("raise SystemExit('no such library')", 60.0, "What a run needs fails here: no such lib"),
        ("import time; time.sleep(600)", 1.0, "could not be tried in the time given"),
    ],
)
def test_a_machine_on_which_nothing_would_run_is_refused_before_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, seconds: float, told: str
) -> None:
    monkeypatch.setattr(gpu_run, "FACTS", facts)
    deadline = time.monotonic() + seconds
    session = gpu_run.Session(tmp_path / "out", tmp_path, dict(os.environ), deadline)
    with pytest.raises(ConfigError, match=told):
        session.require_gpu(cpu=True)


def test_a_number_of_greedy_games_that_cannot_be_is_refused_before_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(tmp_path / "out"), "--packages", "none", "--cpu", "--games", "0"]
    assert gpu_run.main(words) == 2
    assert "--games is 0, expected 1 to 1000." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_needs_a_gpu_is_tested_where_the_session_looks() -> None:
    needing = [
        path
        for path in gpu_run.GPU_TESTS.parent.rglob("*.py")
        if re.search(r"skipif\(.*cuda", path.read_text())
    ]
    assert needing == [gpu_run.GPU_TESTS]


def test_all_verbs_take_the_flags_of_the_machine_and_their_own() -> None:
    there = ["out", "--packages", "packages.tar.xz", "--cpu"]
    bench = gpu_run.flag_parser().parse_args(["bench", *there, "--minutes", "3"])
    assert (bench.minutes, bench.rows, bench.cpu) == (3.0, ("16", "15", "14"), True)
    assert gpu_run.flag_parser().parse_args(["test", *there]).minutes == 2.5
    run = gpu_run.flag_parser().parse_args(["run", *there, "--seeds", "5"])
    assert (run.seeds, run.minutes) == ([5], 9.5)


def test_what_travels_are_locked_versions_but_torch_and_numba_and_a_smaller_opencv() -> None:
    versions = packages.locked_versions()
    names = {version.split("==")[0] for version in versions}
    assert {"gymnasium", "ale-py", "pyzmq", "msgpack", "opencv-python-headless"} <= names
    assert not names & {"torch", "numpy", "numba", "llvmlite", "opencv-python", "mypy", "ruff"}
    assert {"pytest", "pytest-timeout", "hypothesis"} <= names  # for `test`
    assert all(version.count("==") == 1 for version in versions)


def test_unpacked_packages_are_found_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thing.py").write_text("")
    with tarfile.open(tmp_path / "packages.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "thing.py", "thing.py")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = packages.environment_with(tmp_path / "packages.tar.xz", tmp_path / "site")
    assert (tmp_path / "site" / "thing.py").exists()
    assert environment["PYTHONPATH"] == f"{tmp_path / 'site'}{os.pathsep}/elsewhere"


def test_an_archive_cut_short_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(100_000))
    archive = tmp_path / "packages.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "noise", "noise")
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(packages.PackError, match="is not what `pack` makes"):
        packages.environment_with(archive, tmp_path / "site")


def test_a_report_that_cannot_have_its_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be the report's folder"):
        gpu_run.Session(tmp_path / "out", tmp_path, {}, 600.0)
