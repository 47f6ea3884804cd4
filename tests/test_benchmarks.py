"""The arithmetic of the benchmarks, with clocks and sides that are not real. Nothing is timed."""

import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks import noted, system
from benchmarks.__main__ import ROWS, about, main, measured
from benchmarks.measure import (
    SHORT,
    Form,
    Goal,
    NotMeasured,
    Row,
    Side,
    alternate,
    as_json,
    as_markdown,
    as_table,
    fastest,
    from_json,
    growth,
    rate,
    shown,
)
from benchmarks.peers.environment import Peers
from benchmarks.system import Run, lag
from benchmarks.worker import Worker, the_error_in, versus
from common.errors import ConfigError
from tests.test_imports import ROOT, imports, name

PEERS = [p for p in (ROOT / "benchmarks/peers").glob("*.py") if p.stem != "environment"]
HOUSE = {"actors", "benchmarks", "common", "launch", "learner", "tests"}
NO_PEERS = Peers(Path("/proc/no-such-folder"))


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fake_sides(first: float) -> dict[str, Side]:
    """What a worker process makes in these tests."""
    print("a library that prints to standard output")
    if first < 0:
        raise ValueError("no such side here")
    return {"first one": lambda seconds: first * seconds, "pair": lambda _: {"a": 1, "b": 2}}


def one_side() -> dict[str, Side]:
    return {"only": lambda seconds: 3 * seconds}


def row(goal: Goal | None = None) -> Row:
    return Row(7, "updates", "updates/s", "eager", goal, [10.0, 30.0, 20.0], [10.0, 10.0, 16.0])


def test_a_rate_counts_work_over_the_time_it_took_and_leaves_the_warm_up_out() -> None:
    clock, steps = Clock(), []

    def step() -> float:
        steps.append(clock.now)
        clock.now += 0.25 if len(steps) > 8 else 0.0625  # slow once warm-up is over
        return 2.0

    assert rate(step, 2.5, clock) == pytest.approx(2.0 / 0.25)
    assert len(steps) == 8 + 10


def test_growth_is_what_counts_gain_per_second_after_the_warm_up() -> None:
    clock, counts = Clock(), {"env steps/s": 0.0, "updates/s": 0.0}

    def work(seconds: float) -> None:
        clock.now += seconds
        counts["env steps/s"] += 40 * seconds
        counts["updates/s"] += 3 * seconds

    seen = growth(work, lambda: dict(counts), clock)(10.0)
    assert seen == pytest.approx({"env steps/s": 40.0, "updates/s": 3.0})
    assert clock.now == pytest.approx(12.0)


def test_sides_take_turns() -> None:
    asked: list[str] = []

    def side(name: str) -> Callable[[float], float]:
        def measure(seconds: float) -> float:
            asked.append(name)
            return len(asked) * seconds

        return measure

    seen = alternate({name: side(name) for name in "abc"}, rounds=2, seconds=0.5)
    assert "".join(asked) == "abcabc"
    assert seen == {"a": [0.5, 2.0], "b": [1.0, 2.5], "c": [1.5, 3.0]}


def test_the_fastest_side_is_found() -> None:
    figures = {"a": [1.0, 2.0, 3.0], "b": [4.0, 0.0, 4.0], "c": [0.0, 9.0, 0.0]}
    sides = {name: partial(lambda left, _: left.pop(), left) for name, left in figures.items()}
    assert fastest(sides, 1.0) == "b"  # its median is the highest, c's single best is not


def test_a_row_takes_the_median_of_the_rounds_ratios() -> None:
    assert row().ratios == [1.0, 3.0, 1.25]
    assert row(Goal(1.2)).cells() == [
        *("7", "updates", "20 updates/s", "eager: 10", "1.25 (1.00 to 3.00)", "≥ 1.2", "yes")
    ]


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal(1.25), "yes"),
        (Goal(1.26), "no"),
        (Goal(1.25, at_most=True), "yes"),
        (Goal(1.24, at_most=True), "no"),
        (None, "-"),
    ],
)
def test_a_goal_is_met_from_its_own_side(goal: Goal | None, met: str) -> None:
    assert row(goal).met == met


def test_rounds_without_a_partner_are_an_error() -> None:
    with pytest.raises(ValueError):
        _ = Row(1, "a", "", "b", None, [1.0, 2.0], [1.0]).ratios


def test_a_row_that_was_not_measured_says_why() -> None:
    missing = Row(2, "a game", "env steps/s", "EnvPool", Goal(1), note="No module named 'envpool'")
    assert missing.cells() == [
        *("2", "a game", "not measured: No module named 'envpool'", "EnvPool", "-", "≥ 1", "-")
    ]
    assert "ratio" not in missing.record()


def test_the_tables_hold_the_same_cells() -> None:
    rows = [row(Goal(1.2)), Row(12, "lag", "s", "a chunk's time", note="no version")]
    for table, lines in ((as_table(rows), 3), (as_markdown(rows), 4)):
        assert len(table.splitlines()) == lines
        for cell in rows[0].cells() + rows[1].cells():
            assert cell in table
    assert as_markdown(rows).splitlines()[2].count("|") == 8


def test_the_record_holds_every_round_and_what_follows() -> None:
    told = json.loads(as_json([row(Goal(1.2))], about(SHORT)))
    assert {"version", "machine", "date", "form"} <= set(told)
    (record,) = told["rows"]
    assert record["figures"] == [10.0, 30.0, 20.0] and record["references"] == [10.0, 10.0, 16.0]
    assert record["ratio"] == 1.25 and (record["least"], record["most"]) == (1.0, 3.0)
    assert record["met"] == "yes" and record["goal"] == {"bound": 1.2, "at_most": False}


def test_a_record_gives_its_rows_back() -> None:
    rows = [row(Goal(0.05, at_most=True)), row(), Row(12, "lag", "s", "a chunk", note="too dark")]
    assert from_json(as_json(rows, about(SHORT))) == rows


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (999.4, "999"), (1.2345, "1.23"), (0.01234, "0.0123")]
)
def test_three_digits_are_shown(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_worker_answers_whatever_its_libraries_print() -> None:
    with Worker("tests.test_benchmarks:fake_sides", first=3.0) as worker:
        assert worker.sides["first one"](0.5) == 1.5
        worker.begin("pair", 0.0)
        assert worker.answer(0.0) == {"a": 1, "b": 2}


@pytest.mark.parametrize("place", [0, 1 << 16])
def test_installed_packages_do_not_come_before_a_workers_own(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tests` stands for what lies beside Volley where it is installed, and in the other's
    environment too."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "tests" / "test_benchmarks.py").write_text(
        "def fake_sides(first): return {'theirs': lambda seconds: 0.0}\n"
    )
    monkeypatch.setattr("benchmarks.worker.PLACE", place)
    environment = {"PYTHONPATH": str(tmp_path)}
    with Worker("tests.test_benchmarks:fake_sides", environment=environment, first=3.0) as worker:
        assert ("theirs" in worker.sides) == (place > 0)


def test_a_worker_that_dies_leaves_its_last_words() -> None:
    with pytest.raises(NotMeasured, match="ValueError: no such side here"):
        Worker("tests.test_benchmarks:fake_sides", first=-1.0)


def test_a_side_meets_each_of_the_others_and_those_missing_say_why() -> None:
    def nowhere() -> Worker:
        raise NotMeasured("it is nowhere")

    others = {"gone": nowhere, "here": partial(Worker, "tests.test_benchmarks:one_side")}
    rows = versus(Row(2, "a game", "x/s", "", Goal(1)), lambda s: 6 * s, others, Form(2, 0.5, True))
    assert [r.cells()[2:5] for r in rows] == [
        ["not measured: it is nowhere", "gone", "-"],
        ["3 x/s", "here: 1.5", "2.00 (2.00 to 2.00)"],
    ]


def test_peers_that_cannot_be_installed_are_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(NotMeasured, match="no environment for the peers"):
        _ = NO_PEERS.python


def test_no_environment_but_the_peers_own_is_installed_into(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="is there already"):
        _ = Peers(tmp_path).python
    assert list(tmp_path.iterdir()) == []


def test_an_environment_of_another_interpreter_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import environment

    def create(folder: Path, with_pip: bool) -> None:
        assert with_pip and not (folder / "bin").exists()
        (folder / "bin").mkdir()
        (folder / "bin" / "python").touch()
        made.append(folder)

    made: list[Path] = []
    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setattr(environment, "install", lambda python, requirement: True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "peers"
    for _ in range(2):
        assert Peers(Path("peers")).python == str(folder / "bin" / "python")
    assert made == [folder]
    monkeypatch.setattr(environment.platform, "python_version", lambda: "3.99.0")
    assert Peers(folder).python
    (folder / "bin" / "python").unlink()  # what it linked to has been replaced
    assert Peers(folder).python
    assert made == [folder] * 3


def test_a_record_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"Cannot write .*bench\.json: No such file"):
        main(["10", "--json", str(tmp_path / "nowhere" / "bench.json")])


def test_every_row_is_there() -> None:
    assert list(ROWS) == list(range(1, 17))
    for number, place in ROWS.items():
        module, _, function = place.partition(":")
        measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        assert measure.__doc__.startswith(f"Row {number}: ")


def test_a_row_that_fails_does_not_end_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(form: Form, peers: Peers) -> list[Row]:
        raise NotMeasured("it is dark")

    def works(form: Form, peers: Peers) -> list[Row]:
        return [row()]

    fails.__doc__ = "Row 1: a thing."
    monkeypatch.setattr("benchmarks.acting.emulation", fails)
    monkeypatch.setattr("benchmarks.learning.updates", works)
    assert [r.note for r in measured(1, SHORT, NO_PEERS)] == ["it is dark"]
    path = tmp_path / "bench.json"
    assert main(["1", "7", "--markdown", "--json", str(path)]) == 0
    assert "| 1 | a thing | not measured: it is dark |" in capsys.readouterr().out
    assert [r["number"] for r in json.loads(path.read_text())["rows"]] == [1, 7]


def test_what_was_measured_before_an_interruption_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(form: Form, peers: Peers) -> Iterator[Row]:
        yield row()
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.acting.emulation", interrupted)
    path = tmp_path / "bench.json"
    assert main(["1", "7", "--json", str(path)]) == 130
    assert from_json(path.read_text()) == [row()]
    assert "1.25 (1.00 to 3.00)" in capsys.readouterr().out


def test_a_bug_in_one_row_leaves_the_others_to_be_measured_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def breaks(form: Form, peers: Peers) -> Iterator[Row]:
        """Row 1: how fast."""
        yield row()
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("benchmarks.acting.emulation", breaks)
    monkeypatch.setattr("benchmarks.learning.updates", lambda form, peers: [row()])
    path = tmp_path / "bench.json"
    assert main(["1", "7", "--json", str(path)]) == 1
    first, why, last = from_json(path.read_text())
    assert (first, last) == (row(), row())
    assert why.note == "a bug of the benchmark, ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("", ""),
        ("ready\nKilled", "Killed"),
        (
            "Traceback (most recent call last):\n  File x\n"
            "torch.AcceleratorError: CUDA error: no kernel image\nFor debugging consider passing",
            "torch.AcceleratorError: CUDA error: no kernel image",
        ),
    ],
)
def test_of_what_a_process_said_the_line_that_names_the_error_is_told(
    said: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert the_error_in(said) == line
    assert said in capsys.readouterr().err  # all of it, for who looks into it


def test_a_run_that_ends_by_itself_says_why() -> None:
    words = ("-c", "import sys; sys.exit('ValueError: no such thing')")
    with Run(door=words) as run, pytest.raises(NotMeasured, match="code 1: ValueError: no such"):
        run.until(lambda: False)


def test_a_run_counts_from_where_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started:
        def __init__(self, *flags: str) -> None:
            assert flags[-2:] == ("--actors", "4")  # the last of a flag counts

        def __enter__(self) -> "Started":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def until(self, what: Callable[[], object]) -> None:
            assert what()

        def periods(self) -> list[dict[str, float]]:
            names = ("wall_seconds", "env_steps", "updates")
            rows = [(9, 0, 0), (10, 900, 30), (11, 1_800, 60), (12, 2_000, 70), (13, 2_200, 80)]
            return [dict(zip(names, map(float, row), strict=True)) for row in rows]

    monkeypatch.setattr(system, "Run", Started)
    monkeypatch.setattr(system.time, "sleep", lambda _: None)
    monkeypatch.setattr(system, "SETTLE_SECONDS", 0.0)
    assert system.ours("--actors", "4")(0.0)["env steps/s"] == pytest.approx(1_300 / 3)
    monkeypatch.setattr(system, "SETTLE_SECONDS", 2.0)
    settled = system.ours("--actors", "4")(0.0)
    assert settled == pytest.approx({"env steps/s": 200.0, "updates/s": 10.0})


def test_the_lag_of_weights_is_to_the_last_actor_that_uses_them() -> None:
    second = 10**9
    learner: noted.Notes = defaultdict(list)
    learner["published"] = [(1, 0), (2, 10 * second), (3, 20 * second), (4, 30 * second)]
    quick, slow = defaultdict(list), defaultdict(list)  # type: noted.Notes, noted.Notes
    quick["played"] = [(0, 1 * second), (2, 11 * second), (3, 21 * second), (4, 31 * second)]
    slow["played"] = [(1, 2 * second), (3, 23 * second)]  # 2 was passed over, 4 not yet reached
    for actor in (quick, slow):
        actor["step"] = [(0, 0), (640, 10 * second)]
    median, chunk_seconds = lag([learner, quick, slow])
    assert median == pytest.approx((13 + 3) / 2)
    assert chunk_seconds == pytest.approx(1.0)


@pytest.mark.parametrize("path", PEERS, ids=name)
def test_peers_run_in_their_own_environment_without_ours(path: Path) -> None:
    volley = {module for module in imports(path) if module.split(".")[0] in HOUSE}
    assert volley <= {"benchmarks.measure", *(f"benchmarks.peers.{p.stem}" for p in PEERS)}


@pytest.mark.parametrize("light", ["measure", "worker"])
def test_what_peers_share_with_us_needs_the_standard_library_only(light: str) -> None:
    tops = {m.split(".")[0] for m in imports(ROOT / "benchmarks" / f"{light}.py")}
    assert tops <= sys.stdlib_module_names | {"benchmarks"}


def test_notes_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    (tmp_path / "notes-1").write_text("published 1 100\npublished 2 200\npubl")
    (tmp_path / "notes-2").write_text("")
    written, empty = sorted(noted.read(tmp_path), key=len, reverse=True)
    assert written == {"published": [(1, 100), (2, 200)]} and empty == {}
