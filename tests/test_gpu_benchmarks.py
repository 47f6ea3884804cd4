"""Rows 14 to 16 without a GPU: what they say then, and with stand-ins what they would do."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, watched
from benchmarks.__main__ import measured
from benchmarks.gpu import CASES, named
from benchmarks.measure import FULL, SHORT, Form, NotMeasured, Side
from benchmarks.watched import Told, covered
from learner import learner
from tests.test_benchmarks import NO_PEERS, Clock

QUICK = Form(rounds=2, seconds=1.0, full=False)
NIPS, NATURE = (256, "nips"), (32, "nature")


def steady(rate: float) -> Side:
    return lambda seconds: rate


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "require_gpu", lambda: None)


@pytest.fixture(autouse=True)
def a_learner_there(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Whose updates are captured."""
    trainer = SimpleNamespace(is_captured=True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "Trainer", lambda config, device: trainer)
    gpu.on_the_gpu.cache_clear()
    return trainer


def test_rows_say_where_an_update_is_no_captured_graph(a_learner_there: SimpleNamespace) -> None:
    assert gpu.what(NIPS) == "updates with replay on the GPU, nips, batch 256"
    a_learner_there.is_captured = False
    gpu.on_the_gpu.cache_clear()
    assert "on the GPU (kernel by kernel)," in gpu.what(NIPS)
    *_, top = gpu.against_one({1: [1.0], 4: [4.0]})
    assert "(kernel by kernel)" in top.what


@pytest.mark.parametrize("number", [14, 15, 16])
def test_without_a_gpu_a_row_says_what_it_needs(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = measured(number, SHORT, NO_PEERS)
    assert row.cells()[2] == "not measured: needs an NVIDIA GPU"
    assert "GPU" in row.what or "env steps" in row.what


# -- row 14 ---------------------------------------------------------------------------------------


def others(case: gpu.Case) -> dict[str, Side]:
    rates = {"graph NHWC": 2_000, "graph NCHW": 1_000, "eager NHWC": 300, "eager NCHW": 500}
    return {f"{form}, {named(*case)}": steady(rate) for form, rate in rates.items()}


def test_the_learner_meets_each_form_of_the_computation_in_its_faster_layout() -> None:
    rows = gpu.against_bare(NIPS, {named(*NIPS): steady(950)}, others(NIPS), QUICK)
    assert [row.against for row in rows] == [
        "bare computation, captured CUDA graph NHWC",
        "bare computation, eager NCHW",
    ]
    assert [row.ratios for row in rows] == [[0.475] * 2, [1.9] * 2]
    assert [row.met for row in rows] == ["no", "-"]


def test_where_no_graph_could_be_captured_the_rest_is_measured() -> None:
    eager = {key: side for key, side in others(NIPS).items() if "graph" not in key}
    graph, other = gpu.against_bare(NIPS, {named(*NIPS): steady(950)}, eager, QUICK)
    assert graph.cells()[2] == "not measured: PyTorch could not capture it"
    assert other.ratios == [1.9] * 2


def test_the_published_figure_meets_the_network_and_batch_that_it_is_of() -> None:
    *_, row = gpu.against_bare(NATURE, {named(*NATURE): steady(772)}, others(NATURE), QUICK)
    assert "fast-dqn" in row.against and row.ratios == [2.0, 2.0]
    assert gpu.FAST_DQN == NATURE and NATURE in CASES


def test_compiled_forms_come_last_and_one_that_fails_says_why(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class Here:
        def __init__(self, maker: str, **options: Any) -> None:
            started.append(maker)
            if maker.endswith("compiled_sides") and options["case"] == NIPS:
                raise NotMeasured("no compiler")
            assert json.dumps(options)  # it travels to a process
            every = {key: side for case in CASES for key, side in others(case).items()}
            ours = {named(*case): steady(100) for case in CASES}
            last = maker.rpartition(":")[2]
            bare = {"learner_sides": ours, "bare_sides": every}
            self.sides = bare.get(last, {"compiled": steady(400)})

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(gpu, "Worker", Here)
    rows = list(gpu.updates(QUICK, NO_PEERS))
    compiled = rows[-len(CASES) :]
    assert {row.against for row in compiled} == {"compiled computation"}
    assert [row.note for row in compiled] == ["", "no compiler", "", ""]
    assert compiled[0].ratios == [0.25, 0.25]
    assert len(rows) == 3 * len(CASES) + 1
    assert started[:2] == ["benchmarks.gpu:learner_sides", "benchmarks.gpu:bare_sides"]


def test_the_computation_runs_in_both_layouts_on_a_batch_of_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "BURST", 1)
    sides = gpu.bare_sides([(2, "nips")], device="cpu")
    assert list(sides) == ["eager NHWC, nips, batch 2", "eager NCHW, nips, batch 2"]
    assert all(side(0.1) > 0 for side in sides.values())


def test_learners_with_the_settings_of_their_case_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Filled:
        def __init__(self, config: Any) -> None:
            asked.append((config.batch_size, config.network, config.cuda, config.replay_device))

        def update(self) -> None:
            pass

    monkeypatch.setattr(gpu, "filled_learner", Filled)
    assert list(gpu.learner_sides([NIPS, NATURE])) == ["nips, batch 256", "nature, batch 32"]
    assert asked == [(256, "nips", True, "cuda"), (32, "nature", True, "cuda")]


def test_updates_count_once_the_gpu_has_done_them(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    monkeypatch.setattr(gpu, "BURST", 3)
    monkeypatch.setattr(gpu, "steadily", lambda burst: burst)
    burst: Any = gpu.in_bursts(lambda: events.append("update"), "cuda")
    assert burst() == 3
    assert events == ["update", "update", "update", "wait"]


# -- row 15 ---------------------------------------------------------------------------------------


def test_actors_meet_as_many_times_one_and_the_most_of_them_the_absolute_goal(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*flags: str) -> Callable[[float], dict[str, float]]:
        actors = int(flags[flags.index("--actors") + 1])
        each = {1: 1_500.0, 4: 1_500.0, 8: 1_450.0, 12: 1_200.0}[actors]
        return lambda _: {"env steps/s": actors * each, "updates/s": 1.0}

    monkeypatch.setattr(gpu, "ours", run)
    monkeypatch.setattr(gpu, "cores", lambda: 13)
    rows = gpu.env_steps(FULL, NO_PEERS)
    assert [row.against for row in rows] == [
        *("4 times one actor", "8 times one actor", "12 times one actor", "absolute"),
    ]
    assert [row.met for row in rows] == ["yes", "yes", "no", "no"]
    assert rows[1].ratios == pytest.approx([1450 / 1500] * 5)
    assert rows[3].ratios == pytest.approx([0.72] * 5)


def test_few_cores_are_too_few(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "cores", lambda: 4)
    with pytest.raises(NotMeasured, match="need 5 cores"):
        gpu.env_steps(SHORT, NO_PEERS)


# -- row 16 ---------------------------------------------------------------------------------------


class Watching:
    """A run that has been watched."""

    run_dir = Path("/nowhere")

    def __init__(self, *flags: str, door: tuple[str, ...]) -> None:
        assert door == ("-m", "benchmarks.watched") and "--cuda" in flags

    def __enter__(self) -> "Watching":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def until(self, what: Callable[[], Told | None], seconds: float) -> Told | None:
        return what()


@pytest.mark.parametrize(
    ("busy", "ratio", "met"), [(0.00192, 0.04, "yes"), (0.00188, 0.06, "no"), (0.0021, 0.0, "yes")]
)
def test_the_gpu_is_idle_when_it_does_not_work(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch, busy: float, ratio: float, met: str
) -> None:
    monkeypatch.setattr(gpu, "Run", Watching)
    monkeypatch.setattr(watched, "read", lambda _: Told(0.002, busy, 100.0))
    (row,) = gpu.idle(SHORT, NO_PEERS)
    assert row.ratios == [pytest.approx(ratio)]
    assert row.references == [2.0]
    assert row.met == met


@pytest.mark.parametrize("events", [0.0, 6.0])  # or only what is copied from and to the graph
def test_a_profiler_that_saw_no_kernels_is_no_idle_gpu(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch, events: float
) -> None:
    monkeypatch.setattr(gpu, "Run", Watching)
    monkeypatch.setattr(watched, "read", lambda _: Told(0.002, 0.0001, events))
    with pytest.raises(NotMeasured, match=f"saw {events:g} events per update"):
        gpu.idle(SHORT, NO_PEERS)


def test_a_profiler_that_saw_more_work_than_there_was_time_is_not_believed(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "Run", Watching)
    monkeypatch.setattr(watched, "read", lambda _: Told(0.002, 0.0025, 100.0))
    with pytest.raises(NotMeasured, match=r"work for 2\.5 ms in an update that takes 2"):
        gpu.idle(SHORT, NO_PEERS)


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0.0),
        ([(0.0, 2.0), (3.0, 4.0)], 3.0),
        ([(3.0, 4.0), (0.0, 2.0)], 3.0),
        ([(0.0, 5.0), (1.0, 2.0), (4.0, 6.0)], 6.0),  # side by side, and one within another
        ([(-2.0, -1.0), (-1.0, 1.0)], 3.0),
    ],
)
def test_what_runs_side_by_side_counts_once(
    spans: list[tuple[float, float]], length: float
) -> None:
    assert covered(spans) == length


class StandIn:
    """A learner that launches an update in 0.25 s; on the GPU it takes 1 s, and 4 s under a
    profiler, and is waited for when the next is launched. Every fifth has to wait 10 s."""

    at: Clock
    traced = False
    done = 0.0  # when the GPU will be

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.updates, self.turns = run_dir, 0, 0

    def may_sample(self) -> bool:
        self.turns += 1
        return self.turns % 5 != 0

    def update(self) -> None:
        self.updates += 1
        self.at.now += 0.25
        before = StandIn.done
        StandIn.done = max(self.at.now, before) + (4.0 if StandIn.traced else 1.0)
        self.at.now = max(self.at.now, before)

    @classmethod
    def synchronize(cls) -> None:
        cls.at.now = max(cls.at.now, cls.done)


class FakeTrace:
    def __init__(self) -> None:
        StandIn.traced = True

    def end(self) -> tuple[float, int]:
        return 0.75 * watched.TRACED_UPDATES, 40 * watched.TRACED_UPDATES


def test_a_watched_learner_tells_time_without_waiting_for_data_or_for_the_profiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = StandIn.at = Clock()
    monkeypatch.setattr(StandIn, "traced", False)
    monkeypatch.setattr(StandIn, "done", 0.0)
    monkeypatch.setattr(learner, "Learner", StandIn)
    monkeypatch.setattr(watched, "Trace", FakeTrace)
    monkeypatch.setattr(watched.time, "perf_counter", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", StandIn.synchronize)
    for name, count in (("WARM_UP", 7), ("TIMED", 20), ("TRACED", 5)):
        monkeypatch.setattr(watched, f"{name}_UPDATES", count)
    watched.watch_learner()
    watched_one: Any = learner.Learner(tmp_path)  # type: ignore[call-arg, arg-type]
    while watched_one.updates < 7 + 20 + 5:
        assert watched.read(tmp_path) is None
        if watched_one.may_sample():
            watched_one.update()
        else:
            clock.now += 10.0
    # 20 s, and a launch that the GPU waited for at the beginning and after each of five waits.
    assert watched.read(tmp_path) == Told(1.0 + 6 * 0.25 / 20, busy_seconds=0.75, events=40.0)
