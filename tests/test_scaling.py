"""The scaling study: its simulation against arithmetic."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.measure import ENV_STEPS, UPDATES
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import plots, studies, tables
from benchmarks.scaling.events import Clock, Line, Shared
from benchmarks.scaling.scenario import Costs, Network, Scenario, preset
from benchmarks.scaling.simulation import (
    ACTORS,
    LINK_OUT,
    ROUTER,
    TRAINING,
    Run,
    capacities,
    simulate,
)
from benchmarks.scaling.studies import balance, settled
from common.config import GAMES_EACH, Config
from learner.process import PUBLISH_SECONDS

FREE = Costs(**{field.name: 0.0 for field in dataclasses.fields(Costs)})
STEP = 1 / 1024  # seconds; a power of two, so that sums are exact
PLAYING = dataclasses.replace(FREE, actor_step=STEP)
WIDE = Network(bytes_per_second=1e12, latency_seconds=0.0)
CHUNK = Config().chunk_transitions


def collecting(actors: int, costs: Costs, network: Network = WIDE, cores: int = 0) -> Scenario:
    return Scenario(actors, costs, network, preset(), cores=cores, learning=False)


def training(actors: int, costs: Costs, network: Network = WIDE) -> Scenario:
    return Scenario(actors, costs, network, preset())


# -- the parts ------------------------------------------------------------------------------------


def test_simultaneous_events_keep_their_order_and_none_is_due_too_early() -> None:
    clock, seen = Clock(), []
    for name, moment in (("b", 2.0), ("a", 1.0), ("c", 2.0), ("late", 3.5)):
        clock.at(moment, lambda name=name: seen.append((name, clock.now)))
    clock.run(until=3.0)
    assert seen == [("a", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock.now == 3.0


def test_a_link_delivers_bytes_in_the_arithmetic_time() -> None:
    clock, done = Clock(), {}
    link = Shared(clock, 1000.0)
    link.begin(500.0, lambda: done.update(first=clock.now))
    clock.run(until=0.25)  # half of it is through when the second comes
    link.begin(1000.0, lambda: done.update(second=clock.now))
    clock.run(until=10.0)
    assert done == pytest.approx({"first": 0.75, "second": 1.5})
    assert link.done_work() == pytest.approx(1500.0)


def test_cores_are_shared_equally_and_nobody_gets_more_than_one() -> None:
    clock, done = Clock(), []
    cores = Shared(clock, 2.0, each=1.0)
    for work in (1.0, 1.0, 2.0):
        cores.begin(work, lambda: done.append(clock.now))
    clock.run(until=10.0)
    assert done == pytest.approx([1.5, 1.5, 2.5])  # 2/3 of a core each, then one whole


def test_tasks_together_take_as_long_as_one_by_one() -> None:
    clock, done = Clock(), []
    link = Shared(clock, 100.0)
    link.begin(100.0, lambda: done.append(("many", clock.now)), together=3)
    link.begin(50.0, lambda: done.append(("one", clock.now)))
    clock.run(until=10.0)
    assert done == [("one", pytest.approx(2.0)), ("many", pytest.approx(3.5))]
    assert link.done_work() == pytest.approx(350.0)


def test_cancelled_work_leaves_its_share_to_the_others() -> None:
    clock, done = Clock(), []
    link = Shared(clock, 100.0)
    number = link.begin(100.0, lambda: done.append("cancelled"))
    link.begin(100.0, lambda: done.append(clock.now))
    clock.run(until=1.0)
    link.cancel(number)
    clock.run(until=10.0)
    assert done == [pytest.approx(1.5)]


def test_a_line_works_in_order_and_what_is_cleared_never_happens() -> None:
    clock, done = Clock(), []
    line = Line(Shared(clock, 1.0))
    for name in "abc":
        line.put(1.0, lambda name=name: done.append((name, clock.now)))
    clock.run(until=2.5)
    assert done == [("a", 1.0), ("b", 2.0)]
    assert len(line) == 1
    line.clear()
    line.put(1.0, lambda: done.append(("d", clock.now)))
    clock.run(until=10.0)
    assert done[2:] == [("d", 3.5)]


# -- whole runs -----------------------------------------------------------------------------------


def test_an_actor_alone_steps_at_its_own_rate() -> None:
    result = simulate(collecting(1, PLAYING), seconds=8.0, settle=1.0)
    assert result.env_steps_per_second == 1024.0
    assert result.used[ACTORS] == pytest.approx(1.0)


def test_actors_add_up_until_their_cores_are_used_up() -> None:
    rates = [
        simulate(collecting(n, PLAYING, cores=2), 8.0, 1.0).env_steps_per_second for n in (1, 2, 4)
    ]
    assert rates == pytest.approx([1024.0, 2048.0, 2048.0], rel=0.01)


def test_a_saturated_router_caps_what_arrives_at_one_chunk_per_its_cost() -> None:
    costs = dataclasses.replace(PLAYING, router_chunk=1 / 64)
    result = simulate(collecting(16, costs), seconds=16.0, settle=4.0)
    assert result.env_steps_per_second == pytest.approx(64 * CHUNK, rel=0.01)
    assert result.used[ROUTER] == pytest.approx(1.0, abs=0.001)
    assert max(result.used, key=result.used.__getitem__) == ROUTER


def test_a_full_link_caps_what_arrives_at_its_bandwidth() -> None:
    costs = dataclasses.replace(PLAYING, chunk_bytes=1_000.0)
    slow = Network(bytes_per_second=32_000.0, latency_seconds=1e-3)
    result = simulate(collecting(16, costs, slow), seconds=16.0, settle=8.0)
    assert result.used["link in"] == pytest.approx(1.0)
    # What was sent again in vain takes its part.
    arrived = result.env_steps_per_second / CHUNK * (1 + result.resent)
    assert arrived == pytest.approx(32.0, rel=0.1)


def test_slow_training_holds_the_actors_to_the_ratio() -> None:
    costs = dataclasses.replace(PLAYING, update=1 / 16)
    scenario = training(8, costs)
    result = settled(scenario)
    assert result.updates_per_second == pytest.approx(16.0, rel=0.01)
    assert balance(scenario, result) == pytest.approx(1.0, abs=0.03)
    assert max(result.used, key=result.used.__getitem__) == TRAINING
    # Each of them waits for its turn with a chunk in hand, and another in the making of each game.
    waiting = 8 * CHUNK * (1 + GAMES_EACH / 2)
    assert result.data_age == pytest.approx(waiting / result.env_steps_per_second, rel=0.05)


def test_fast_training_waits_for_data_and_keeps_the_ratio_too() -> None:
    scenario = training(2, dataclasses.replace(PLAYING, update=1e-4))
    result = settled(scenario)
    assert result.env_steps_per_second == pytest.approx(2 * 1024.0, rel=0.02)
    assert balance(scenario, result) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("update_seconds", [1e-3, 0.05])
def test_credit_is_never_exceeded_and_nothing_is_lost(update_seconds: float) -> None:
    costs = dataclasses.replace(
        PLAYING,
        update=update_seconds,
        router_ack=2e-5,
        chunk_bytes=5e5,
        weights_bytes=3e6,
        message_bytes=100.0,
    )
    run = Run(training(24, costs, Network(50e6, 1e-3)))
    start = run.router.taken
    for second in range(1, 41):
        run.clock.run(until=second / 2)
        owed = sum(session.credit for session in run.sessions)
        assert owed == run.sessions.demand.granted_chunks
        assert run.router.taken + CHUNK * owed <= run.router.insert_limit + CHUNK
        for actor, session in zip(run.actors, run.sessions, strict=True):
            assert 0 <= session.credit <= Config().window_chunks
            assert actor.acked <= session.acked_seq <= actor.sent <= actor.granted
            assert actor.granted <= session.granted_seq
        assert run.produced == sum(actor.seq for actor in run.actors)
        assert run.router.taken - start == CHUNK * sum(s.acked_seq for s in run.sessions)
        assert run.trainer.inserted <= run.router.taken
    assert run.trainer.stored > 100


def test_weights_traffic_is_versions_times_actors_times_their_size() -> None:
    costs = dataclasses.replace(PLAYING, update=1 / 64, weights_bytes=1e6)
    result = simulate(training(10, costs, Network(1e9, 0.0)), seconds=20.0, settle=5.0)
    period = Config().publish_period_updates
    assert result.versions_per_second == pytest.approx(result.updates_per_second / period, rel=0.05)
    assert result.used[LINK_OUT] == pytest.approx(result.versions_per_second * 10 * 1e-3, rel=0.05)


def test_versions_are_no_closer_together_than_the_learner_makes_them() -> None:
    # A period of updates would be over after 0.02 s.
    costs = dataclasses.replace(PLAYING, update=1e-3, actor_step=1e-5)
    result = simulate(training(4, costs), seconds=20.0, settle=5.0)
    assert result.updates_per_second == pytest.approx(1000.0, rel=0.01)
    assert result.versions_per_second == pytest.approx(1 / PUBLISH_SECONDS, rel=0.02)


def test_data_that_never_arrive_have_no_age() -> None:
    costs = dataclasses.replace(PLAYING, router_chunk=1e9)
    result = simulate(collecting(2, costs), seconds=2.0, settle=1.0)
    assert (result.env_steps_per_second, result.data_age) == (0.0, None)


def test_equal_scenarios_have_equal_results() -> None:
    costs = dataclasses.replace(PLAYING, update=0.01, chunk_bytes=5e5, weights_bytes=3e6)
    scenario = training(30, costs, Network(100e6, 1e-4))
    assert simulate(scenario, 5.0, 2.0) == simulate(scenario, 5.0, 2.0)


def test_more_actors_than_a_configuration_takes_have_its_tolerance() -> None:
    for actors in (1, 3, 64, 4096):
        config = dataclasses.replace(preset(), actors=actors)
        assert training(actors, FREE).tolerance_samples == config.tolerance_samples
    assert training(10_000, FREE).tolerance_samples > 10_000 * 4 * CHUNK


def test_a_parts_own_limit_is_what_it_takes_alone() -> None:
    costs = dataclasses.replace(PLAYING, update=0.02, router_chunk=1e-3)
    limits = capacities(training(100, costs))
    assert limits[ACTORS] == pytest.approx(102_400.0)
    assert limits[ROUTER] == pytest.approx(64_000.0)
    assert limits[TRAINING] == pytest.approx(50 * 32 / Config().samples_per_insert)


def test_a_link_carries_weights_as_often_as_updates_or_the_clock_ask_for() -> None:
    """100 actors, 8 Mbit of weights each, a frame's worth of messages for every chunk."""
    link = Network(bytes_per_second=2e9, latency_seconds=0.0)
    costs = dataclasses.replace(FREE, weights_bytes=1e6, message_bytes=7e3)
    config = Config()
    versions = config.samples_per_insert / config.batch_size / config.publish_period_updates
    # All of 2 GB, if a version comes for so many env steps; or what 10 a second leave of it.
    by_updates = 2e9 / (100 * 1e6 * versions + 7e3 / CHUNK)
    by_clock = (2e9 - 100 * 1e6 / PUBLISH_SECONDS) / (7e3 / CHUNK)
    assert by_clock > by_updates
    assert capacities(training(100, costs, link))[LINK_OUT] == pytest.approx(by_clock)
    seldom = dataclasses.replace(training(190, costs, link), publish_seconds=1e-3)
    by_updates = 2e9 / (190 * 1e6 * versions + 7e3 / CHUNK)
    assert capacities(seldom)[LINK_OUT] == pytest.approx(by_updates)


# -- the command line -----------------------------------------------------------------------------


def measurement() -> dict[str, Any]:
    """As `measure` writes it, with costs that are not real."""
    figures = {name: 1e-5 for name, _, _ in tables.COSTS} | dataclasses.asdict(PLAYING)
    figures |= {"update": 0.01, "chunk_bytes": 5e5, "weights_bytes": 3e6, "message_bytes": 200.0}
    figures["io_weights with keys"] = 0.1
    runs = [
        {"actors": 1, "learning": learning, ENV_STEPS: 1000.0, UPDATES: 50.0} for learning in (0, 1)
    ]
    return {"about": {}, "costs": figures, "runs": runs, "rounds": {}}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("CROWDS", (2, 3, 4)),
        ("CURVE", (1, 4)),
        ("SETTLE_SECONDS", 0.5),
        ("SECONDS", 1.0),
    ):
        monkeypatch.setattr(studies, name, value)
    monkeypatch.setattr(tables, "CROWDS", studies.CROWDS)


def test_a_measurement_becomes_tables_and_plots(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps(measurement()))
    assert scaling.main(["simulate", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "| 1 | no | 1,000 | 1,024 | +2% | - | - |",
        "With keys",
        "4 ingest processes",
        "| CPU | 4 |",
    ):
        assert words in printed
    for table in printed.split("\n\n")[1::2]:
        assert len({row.count("|") for row in table.strip().splitlines()}) == 1
    assert scaling.main(["draw", "--json", str(path)]) == 0
    assert ElementTree.fromstring(capsys.readouterr().out).tag.endswith("svg")


def test_a_curve_is_broken_where_there_is_no_value() -> None:
    line = plots.Line("age", "red", [(1, 0.5), (2, 1.0), (4, None), (8, 2.0), (16, None)])
    assert list(line.pieces()) == [[(1, 0.5), (2, 1.0)], [(8, 2.0)]]


def test_a_billion_frames_cost_the_time_of_all_cores() -> None:
    scenario = training(61, dataclasses.replace(PLAYING, update=1e-4))
    result = simulate(scenario, seconds=2.0, settle=1.0)
    result = dataclasses.replace(result, env_steps_per_second=1e9 / 4 / 3600)
    assert studies.price(studies.CPU, result) == pytest.approx(
        {"hours": 1.0, "core_hours": 64.0, "dollars": 2.56}
    )
    assert studies.price(studies.GPU, result)["dollars"] == pytest.approx(3.56)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["Cannot read", "No such file"]),
        ("not json", ["Cannot read"]),
        ("[]", ['has no "costs"', "measure --json"]),
        ('{"runs": []}', ['has no "costs"', "measure --json"]),
    ],
)
def test_what_is_no_measurement_is_refused_in_one_sentence(
    content: str | None, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scaling.json"
    if content is not None:
        path.write_text(content)
    assert scaling.main(["simulate", "--json", str(path)]) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words) and len(told.strip().splitlines()) == 1


def test_plots_need_a_simulation_and_measuring_a_place_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps(measurement()))
    assert scaling.main(["draw", "--json", str(path)]) == 2
    assert "simulate --json" in capsys.readouterr().err
    assert scaling.main(["measure", "--json", str(tmp_path / "none" / "file")]) == 2
    assert capsys.readouterr().err.startswith("Cannot write")


def test_a_measurement_that_lacks_a_cost_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = measurement()
    del record["costs"]["router_chunk"]
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps(record))
    assert scaling.main(["simulate", "--json", str(path)]) == 2
    assert "router_chunk" in capsys.readouterr().err
