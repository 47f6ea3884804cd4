"""The learner as a whole: what it draws reaches the update, what it publishes and keeps is the
policy, and what a crash leaves behind goes on.
"""

import csv
import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from common.config import Config
from common.errors import ConfigError
from common.messages import Chunk, EpisodeStats, Spec
from common.network import DQN, network_for, state_size, state_vector
from common.policy_file import Policy, load_policy, mean_score_of
from common.router import LearnerEndpoint, TransportDied
from learner import segments
from learner.checkpoint import Checkpointer, list_checkpoints
from learner.dqn import NotFinite
from learner.learner import Learner, PlayGreedily, make_sampler
from learner.prioritized import PrioritizedSampler
from learner.process import learn, run_learner
from tests.builders import chunk_of, config
from tests.gpu import as_on_a_gpu


class Folder:
    """Learners of one run folder, each with so many chunks of 16 transitions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.learners: list[Learner] = []

    def learner(self, settings: Config, chunks: int = 0, resume: bool = False) -> Learner:
        (self.path / "config.json").write_text(settings.to_json())
        learner = Learner(settings, self.path, resume, started=0.0)
        self.learners.append(learner)
        fill(learner, chunks)
        return learner


def fill(learner: Learner, chunks: int, **of_a_chunk: Any) -> None:
    for i in range(chunks):
        chunk = chunk_of(Spec.of(learner.config), 16, 100 * i + 1, terminal=True)
        learner.insert(dataclasses.replace(chunk, **of_a_chunk))


def to_its_end(
    settings: Config,
    folder: Folder,
    *,
    resume: bool,
    stop: Any,
    beat: Callable[[], None] = lambda: None,
    play_greedily: PlayGreedily = lambda *_: [],
) -> int:
    """The learner process, in this one. -> exit code."""
    return run_learner(
        settings,
        folder.path,
        resume=resume,
        started=time.monotonic(),
        stop=stop,
        play_greedily=play_greedily,
        beat=beat,
        call_late_actors=lambda: None,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    for learner in folder.learners:
        learner.records.metrics.close()


def moved(network: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by)


def test_td_errors_become_the_priorities_of_what_was_drawn_and_of_nothing_else(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = folder.learner(config(prioritized=True, replay_transitions=512), chunks=20)
    sample, train = learner.replay.sample, learner.trainer.begin
    drawn: list[np.ndarray] = []
    told: list[np.ndarray] = []

    def sampled(size: int) -> Any:
        batch, ids = sample(size)
        drawn.append(ids)
        return batch, ids

    def trained(batch: Any) -> Any:
        outcome = train(batch)
        told.append(outcome()[1].numpy())
        return outcome

    monkeypatch.setattr(learner.replay, "sample", sampled)
    monkeypatch.setattr(learner.trainer, "begin", trained)
    learner.update()
    sampler = learner.replay.sampler
    assert isinstance(sampler, PrioritizedSampler)
    expected = np.ones(20 * 16)
    expected[drawn[0]] = (np.abs(told[0]) + sampler.EPSILON) ** sampler.alpha
    assert np.allclose(sampler.tree.get(np.arange(20 * 16)), expected)


def test_what_a_gpu_was_given_is_taken_in_when_it_has_the_next(folder: Folder) -> None:
    settings = config(prioritized=True, replay_transitions=512)
    learner = folder.learner(settings, chunks=20)
    as_on_a_gpu(learner.trainer)
    begin, drawn, told = learner.trainer.begin, [], []

    def begun(batch: Any) -> Any:
        outcome = begin(batch)

        def later() -> Any:
            told.append(outcome())
            return told[-1]

        return later

    sample = learner.replay.sample

    def sampled(size: int) -> Any:
        batch, ids = sample(size)
        drawn.append(ids)
        return batch, ids

    learner.trainer.begin, learner.replay.sample = begun, sampled  # type: ignore[method-assign]
    sampler = learner.replay.sampler
    assert isinstance(sampler, PrioritizedSampler)

    learner.update()
    ids = np.arange(20 * 16)
    assert (learner.updates, len(told)) == (1, 0) and (sampler.tree.get(ids) == 1.0).all()
    learner.update()
    assert (learner.updates, len(told)) == (2, 1)
    assert set(np.flatnonzero(sampler.tree.get(ids) != 1.0)) == set(drawn[0])
    fill(learner, 22)  # in the place of some that the second was given
    first = learner.replay.first_id
    ids = np.arange(first, learner.replay.end_id)
    assert min(drawn[1]) < first < max(drawn[1])
    before = sampler.tree.get(ids % 512)
    learner.save_now()  # nothing is only begun in a checkpoint
    assert len(told) == 2
    changed = first + np.flatnonzero(sampler.tree.get(ids % 512) != before)
    assert set(changed) == {number for number in drawn[1] if number >= first}
    learner.update()
    fill(learner, 40)  # in the place of all
    before = sampler.tree.nodes.copy()
    learner.finish_update()
    assert len(told) == 3 and np.array_equal(sampler.tree.nodes, before)


def test_a_loss_that_is_not_finite_ends_the_run_an_update_later_on_a_gpu(folder: Folder) -> None:
    learner = folder.learner(config(), chunks=20)
    as_on_a_gpu(learner.trainer)
    returns = learner.replay.transitions["n_step_return"].copy()
    learner.replay.transitions["n_step_return"] = np.nan
    learner.update()
    learner.replay.transitions["n_step_return"] = returns
    with pytest.raises(NotFinite, match="loss is nan at update 1:"):
        learner.update()
    assert np.isfinite(learner.weights().vector).all()


def test_what_is_published_kept_and_saved_is_the_averaged_policy(folder: Folder) -> None:
    settings = config(policy_average_updates=500, publish_period_updates=1)
    learner = folder.learner(settings, chunks=20)
    moved(learner.trainer.online, 0.01)
    learner.update()
    published = learner.weights().vector
    averaged, online = (state_vector(n) for n in (learner.trainer.policy, learner.trainer.online))
    assert np.array_equal(published, averaged)
    assert not np.allclose(published, online)
    learner.save_policy()
    learner.save_now()
    (checkpoint,) = list_checkpoints(folder.path / "checkpoints")
    for path in (folder.path / "best.safetensors", checkpoint / "model.safetensors"):
        assert np.array_equal(state_vector(load_policy(path).network), averaged), path


def test_weights_that_are_not_finite_go_nowhere(folder: Folder) -> None:
    learner = folder.learner(config(publish_period_updates=1), chunks=20)
    with torch.no_grad():
        learner.trainer.online.first.weight[0, 0, 0, 0] = float("inf")
    for goes in (learner.update, learner.weights, learner.save_policy, learner.save_now):
        with pytest.raises(NotFinite):
            goes()
    assert learner.weights_version == 0
    assert not (folder.path / "best.safetensors").exists()
    assert list_checkpoints(folder.path / "checkpoints") == []


def test_actors_are_given_each_version_or_ten_times_a_second_the_newest(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = folder.learner(config(publish_period_updates=2), chunks=20)
    clock, turn, given = [0.0], [0], []
    told: Any = SimpleNamespace(reason="")

    def beat() -> None:
        """Twelve quick updates, two turns that wait for data, four slow updates."""
        turn[0] += 1
        clock[0] += 0.03 if turn[0] <= 14 else 0.2
        told.reason = "Told to stop." if turn[0] == 18 else ""

    transport: Any = SimpleNamespace(
        drain=list,
        publish=lambda weights: given.append((round(clock[0], 2), weights.version)),
        set_insert_limit=lambda *_: None,
        wait=lambda _: None,
    )
    monkeypatch.setattr("learner.process.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(learner.records, "tick", lambda *_: None)
    monkeypatch.setattr(learner, "may_sample", lambda: turn[0] not in (13, 14))
    learn(learner, transport, told, lambda *_: [], beat, call_late_actors=lambda: None)
    quick, waiting = [(0.06, 1), (0.18, 3), (0.30, 5)], [(0.42, 6)]
    assert given == [*quick, *waiting, (0.82, 7), (1.22, 8)]


def test_late_actors_are_called_while_the_game_is_mastered(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = folder.learner(config(reward=19.0))
    scores, called = iter([20.0] * 11 + [-20.0] + [20.0] * 10), []
    spec, told = Spec.of(learner.config), cast(Any, SimpleNamespace(reason=""))

    def one_game() -> list[Chunk]:
        chunk = chunk_of(spec, 16, 100 * learner.records.scores.games, terminal=True)
        if (score := next(scores, None)) is None:
            told.reason = "Told to stop."
            return []
        return [dataclasses.replace(chunk, episode=EpisodeStats(score, 16))]

    transport: Any = SimpleNamespace(
        drain=one_game,
        publish=lambda _: None,
        set_insert_limit=lambda *_: None,
        wait=lambda _: None,
    )
    monkeypatch.setattr(learner.records, "tick", lambda *_: None)
    games = learner.records.scores
    call = lambda: called.append(games.games)  # noqa: E731
    learn(learner, transport, told, lambda *_: [], lambda: None, call)
    assert called == [10, 11, 22]  # games before the turn; the twelfth ends it for ten


def test_a_game_that_is_mastered_still_is_so_after_a_resume(folder: Folder) -> None:
    learner = folder.learner(config(reward=19.5))
    fill(learner, 10, episode=EpisodeStats(20.0, 60))
    fill(learner, 1, episode=EpisodeStats(19.0, 60))  # with which mastery would not begin
    assert learner.mastered
    learner.save_now()
    assert folder.learner(config(reward=19.5), resume=True).mastered


def test_the_input_is_standardized_once_by_what_warm_up_has_shown(folder: Folder) -> None:
    settings = config(policy_average_updates=500)  # learning starts at 200 transitions
    learner = folder.learner(settings, chunks=12)
    networks = (learner.trainer.online, learner.trainer.target, learner.trainer.policy)
    untouched = {float(network.pixel_scale) for network in networks}
    fill(learner, 1)
    scales = {float(network.pixel_scale) for network in networks}
    assert len(untouched) == len(scales) == 1
    assert scales != untouched
    for network in networks:
        assert network.background.any()
    fill(learner, 5)
    assert {float(network.pixel_scale) for network in networks} == scales


def test_a_checkpoint_is_left_out_while_the_one_before_is_being_written(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the last waits for it, with signs of life."""
    learner, may_go_on, written = folder.learner(config(), chunks=1), threading.Event(), []

    def write(self: Checkpointer, snapshot: Any, got_on: Any, **options: Any) -> None:
        written.append(snapshot)
        got_on()
        assert may_go_on.wait(60)

    monkeypatch.setattr(Checkpointer, "_write", write)
    learner.save()
    learner.save()
    learner.save_now(beat=may_go_on.set)
    assert len(written) == 2  # the first, and the last, which is never left out


def test_a_last_save_that_waits_for_one_that_hangs_shows_no_life(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody would end a learner whose disk never answers."""
    learner, may_go_on, beats = folder.learner(config(), chunks=1), threading.Event(), list[int]()
    monkeypatch.setattr(Checkpointer, "_write", lambda *_, **__: may_go_on.wait(60))
    learner.save()
    thread, looks = learner.checkpoints._thread, itertools.count()
    assert thread
    join = thread.join

    def look(seconds: float) -> None:
        if next(looks) == 3:
            may_go_on.set()
            join(60)

    monkeypatch.setattr(thread, "join", look)
    learner.save_now(lambda: beats.append(1))
    assert next(looks) == 4 and not beats


def test_a_learner_whose_transport_dies_saves_what_it_has(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = iter([[chunk_of(Spec.of(config()), 16, 9_000)]])

    def drain(self: LearnerEndpoint) -> list[Any]:
        for chunks in came:
            return chunks
        raise TransportDied("the transport thread died")

    monkeypatch.setattr(LearnerEndpoint, "drain", drain)
    (folder.path / "config.json").write_text(config().to_json())
    told: Any = SimpleNamespace(reason="")
    with pytest.raises(TransportDied):
        to_its_end(config(), folder, resume=False, stop=told)
    assert [path.name for path in list_checkpoints(folder.path / "checkpoints")] == [
        "step-000000000016"
    ]


@pytest.mark.parametrize(
    ("at", "confirm_games"), [("the end", 0), ("the end", 2), ("its limit", 0), ("its limit", 2)]
)
def test_a_run_that_the_last_chunks_solve_is_solved_and_says_by_which_mean(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, at: str, confirm_games: int
) -> None:
    """They had come in when it was told to stop, or was at its limit; one more is a lost game. Who
    is told to stop plays no greedy games any more."""
    limit = 16 if at == "its limit" else 0
    settings = config(reward=0.5, max_env_steps=limit, confirm_games=confirm_games)
    told: Any = SimpleNamespace(reason="" if limit else "Told to stop.")

    def play(policy: Policy, games: int, seed: int, every_step: Callable[[], None]) -> list[float]:
        every_step()
        return [1.0] * games

    chunk = chunk_of(Spec.of(settings), 16, 9_000)
    won = [dataclasses.replace(chunk, episode=EpisodeStats(1.0, 60))] * 100
    lost = [dataclasses.replace(chunk, episode=EpisodeStats(-99.0, 60))]
    came = iter([[chunk], won + lost])
    monkeypatch.setattr(LearnerEndpoint, "drain", lambda _: next(came))
    (folder.path / "config.json").write_text(settings.to_json())
    solved = bool(limit) or not confirm_games
    code = to_its_end(settings, folder, resume=False, stop=told, play_greedily=play)
    result = json.loads((folder.path / "result.json").read_text())
    assert (result["games"], result["env_steps"]) == (101, 1_632)
    assert result["solved"] == solved
    assert code == (0 if solved else 130)
    assert result["reason"] == ("Solved in 1,616 env steps!" if solved else "Told to stop.")
    assert result["mean_score_100"] == (1.0 if solved else 0.0)
    assert result["greedy_mean_score"] == (1.0 if solved and confirm_games else None)
    confirmed = result["confirmed_seconds"]
    assert (confirmed is not None) == (solved and confirm_games > 0)
    assert not confirmed or 0 < result["wall_seconds"] < confirmed


class Greedy:
    """Greedy games that are not played. A policy that plays them so well, one after the other."""

    def __init__(self, *means: float | Exception, turns: int = 1) -> None:
        self.turns = turns
        self.means, self.policies, self.seeds = list(means), list[Policy](), list[int]()

    def __call__(
        self, policy: Policy, games: int, seed: int, every_step: Callable[[], None]
    ) -> list[float]:
        self.policies.append(policy)
        self.seeds.append(seed)
        for _ in range(self.turns):
            every_step()
        if isinstance(mean := self.means.pop(0), Exception):
            raise mean
        return [mean] * games


def win(learner: Learner, games: int, play: PlayGreedily, stop: Any, beat: Any = None) -> None:
    for _ in range(games):  # each by one more
        fill(learner, 1, episode=EpisodeStats(1.0 + learner.records.scores.games, 60))
        learner.confirm(play, stop, beat or (lambda: None))


def test_a_policy_that_greedy_games_confirm_is_the_one_that_is_kept(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one before had a better mean, which they did not confirm."""
    settings = config(reward=0.5, confirm_games=2, precision="float32")
    learner = folder.learner(settings, chunks=20)
    learner.records.scores.best_mean_100 = 1000.0
    play, told, beats = Greedy(0.5, 1.5), cast(Any, SimpleNamespace(reason="")), list[int]()
    best = folder.path / "best.safetensors"
    win(learner, 100, play, told, lambda: beats.append(1))
    assert not learner.records.ending.solved and not best.exists()
    for _ in range(40):
        learner.update()
    win(learner, 50, play, told, lambda: beats.append(1))
    assert learner.records.ending.solved
    assert len(beats) == len(set(play.seeds)) == len(play.means) + 2 == 2
    kept = state_vector(load_policy(best).network)
    assert np.array_equal(kept, state_vector(learner.trainer.policy))
    for policy, is_kept in zip(play.policies, (False, True), strict=True):
        assert np.array_equal(state_vector(policy.network), kept) == is_kept
    for _ in range(40):
        learner.update()
    assert not np.array_equal(state_vector(learner.trainer.policy), kept)
    win(learner, 100, play, told)  # those that come in before it ends; the last mean is the best
    assert learner.records.finish(learner, None, "done")
    assert np.array_equal(state_vector(load_policy(best).network), kept)
    said = capsys.readouterr().out
    assert "Greedy games: mean +0.50 of 2; +1 wanted, so learning goes on." in said
    assert "Greedy games: mean +1.50 of 2; confirmed." in said
    assert json.loads((folder.path / "result.json").read_text())["greedy_mean_score"] == 1.5


def test_a_stop_while_greedy_games_are_played_leaves_open_whether_the_run_is_solved(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = folder.learner(config(reward=0.5, confirm_games=2))
    told = cast(Any, SimpleNamespace(reason=""))

    def beat() -> None:
        told.reason = "Told to stop."

    play = Greedy(1.0)
    win(learner, 110, play, told, beat)  # ten that came in meanwhile
    records = learner.records
    assert not records.ending.solved and not records.ending.in_doubt
    assert len(play.seeds) == capsys.readouterr().out.count("greedy games have to") == 1
    assert records.ending.finished(learner.inserted, told.reason) == "Told to stop."


def test_greedy_games_end_with_the_time_of_the_run(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("learner.records.time.monotonic", lambda: clock[0])
    learner = folder.learner(config(reward=0.5, confirm_games=2, max_minutes=1.0))

    def beat() -> None:
        clock[0] += 20.0

    play = Greedy(1.0, turns=5)
    win(learner, 100, play, cast(Any, SimpleNamespace(reason="")), beat)
    assert clock[0] == 60.0 and play.means == [1.0]
    win(learner, 3, play, cast(Any, SimpleNamespace(reason="")), beat)  # the last that come in
    assert len(play.seeds) == capsys.readouterr().out.count("greedy games have to") == 1
    assert learner.records.ending.finished(learner.inserted, "") == "Stopped at --max-minutes 1."


@pytest.mark.parametrize(("turns", "confirmed"), [(602, True), (603, False)])
def test_a_policy_that_goes_round_in_circles_is_not_confirmed(
    folder: Folder, turns: int, confirmed: bool
) -> None:
    """Two games are made, and ten times 60 env steps are the most: also in lock-step."""
    learner = folder.learner(config(reward=0.5, confirm_games=2))
    for _ in range(100):
        fill(learner, 1, episode=EpisodeStats(1.0, 60))
        learner.confirm(Greedy(1.0, turns=turns))
    assert learner.records.ending.solved == confirmed
    assert learner.records.ending.in_doubt != confirmed


def test_nobody_plays_for_a_learner_that_has_its_policy_evaluated(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, limits = folder.learner(config(reward=0.5, confirm_games=2)), list[float]()
    chunk = chunk_of(Spec.of(learner.config), 16, 9_000)
    won = iter([[dataclasses.replace(chunk, episode=EpisodeStats(1.0, 60))] * 110])
    transport: Any = SimpleNamespace(
        drain=lambda: next(won, []),
        publish=lambda _: None,
        set_insert_limit=lambda limit, _: limits.append(limit),
        wait=lambda _: None,
    )

    def play(*_: Any) -> list[float]:
        assert limits[-1] == learner.inserted == 1_600
        return [1.0]

    monkeypatch.setattr(learner.records, "tick", lambda *_: None)
    told = cast(Any, SimpleNamespace(reason=""))
    reason = learn(learner, transport, told, play, lambda: None, lambda: None)
    assert reason == "Solved in 1,600 env steps!"


def test_a_game_that_breaks_when_it_is_played_greedily_costs_nothing_that_is_learned(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = folder.learner(config(reward=0.5, confirm_games=2))
    broken = Greedy(ConfigError("Catch gave a reward of nan, expected a finite one."))
    win(learner, 100, broken, cast(Any, SimpleNamespace(reason="")))
    assert not learner.records.ending.solved and learner.records.ending.in_doubt
    told = capsys.readouterr()
    assert (
        "A greedy game failed (--confirm-games 0 does without): ConfigError: Catch gave a reward "
        "of nan, expected a finite one.\n"
    ) in told.out
    assert "they could not be played; +1 wanted, so learning goes on." in told.out
    assert not told.err
    win(learner, 50, Greedy(KeyError("a bug")), cast(Any, SimpleNamespace(reason="")))
    told = capsys.readouterr()
    assert "A greedy game failed (--confirm-games 0 does without): KeyError: 'a bug'" in told.out
    assert "Traceback" in told.err and "KeyError: 'a bug'" in told.err


def test_a_transport_that_dies_when_nothing_more_is_wanted_of_it_costs_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, stop = config(max_env_steps=480), LearnerEndpoint.stop
    folder.learner(settings, chunks=30).save_now()

    def stopped(self: LearnerEndpoint) -> None:
        stop(self)
        self._failure = KeyError("a bug")

    monkeypatch.setattr(LearnerEndpoint, "stop", stopped)
    told: Any = SimpleNamespace(reason="")
    assert to_its_end(settings, folder, resume=True, stop=told) == 0
    assert (folder.path / "result.json").exists()


@pytest.mark.parametrize("lock_step", [False, True])
def test_a_checkpoint_is_due_once_a_period_and_only_lock_step_waits_for_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, lock_step: bool
) -> None:
    now = 100.0
    monkeypatch.setattr("learner.learner.time", SimpleNamespace(monotonic=lambda: now))
    learner = folder.learner(config(checkpoint_period_seconds=30.0))
    if lock_step:
        learner._player = SimpleNamespace()  # type: ignore[assignment]
    saved: list[tuple[str, float]] = []
    monkeypatch.setattr(learner, "save", lambda: saved.append(("beside", now)))
    monkeypatch.setattr(learner, "save_now", lambda: saved.append(("now", now)))
    for now in (110.0, 130.0, 131.0, 140.0, 161.0, 162.0):  # noqa: B007
        learner.save_when_due()
    assert saved == [("now" if lock_step else "beside", due) for due in (131.0, 162.0)]
    monkeypatch.setattr(
        learner, "config", dataclasses.replace(learner.config, checkpoint_period_seconds=0.0)
    )
    now = 1_000.0
    learner.save_when_due()
    assert len(saved) == 2


def test_what_was_evicted_while_it_was_saved_is_not_drawn_after_a_resume(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(prioritized=True, replay_transitions=256)
    learner = folder.learner(settings, chunks=16)
    read, oldest = learner.replay.read_chunk, learner.replay.chunks[0]

    def overwritten_meanwhile(stored: Any) -> Any:
        chunk = read(stored)
        if stored == oldest and learner.replay.first_id == oldest.first_id:
            fill(learner, 1)
        return chunk

    monkeypatch.setattr(learner.replay, "read_chunk", overwritten_meanwhile)
    learner.save_now()
    assert learner.checkpoints.error is None
    resumed = folder.learner(settings, resume=True)
    assert (resumed.replay.first_id, resumed.replay.end_id) == (oldest.end_id, 256)
    sampler = resumed.replay.sampler
    assert isinstance(sampler, PrioritizedSampler)
    live = np.arange(resumed.replay.first_id, resumed.replay.end_id)
    assert sampler.tree.get(live).all()
    assert sampler.tree.total == pytest.approx(sampler.tree.get(live).sum())
    for _ in range(50):
        assert resumed.replay.sample(32)[1].min() >= oldest.end_id


@pytest.mark.parametrize("prioritized", [True, False])
def test_a_ring_that_was_overwritten_while_it_was_saved_is_filled_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, prioritized: bool
) -> None:
    settings = config(prioritized=prioritized, replay_transitions=256, batch_size=16)
    learner = folder.learner(settings, chunks=16)
    read, oldest = learner.replay.read_chunk, learner.replay.chunks[0]

    def overwritten_meanwhile(stored: Any) -> Any:
        if learner.replay.first_id == oldest.first_id:
            fill(learner, 40)
        return read(stored)

    monkeypatch.setattr(learner.replay, "read_chunk", overwritten_meanwhile)
    learner.save_now()
    assert learner.checkpoints.error is None
    resumed = folder.learner(settings, resume=True)
    assert (len(resumed.replay), resumed.replay.end_id, resumed.inserted) == (0, 256, 256)
    if isinstance(resumed.replay.sampler, PrioritizedSampler):
        assert resumed.replay.sampler.tree.total == 0.0
    assert not resumed.may_sample() and resumed.insert_limit() >= 256 + 16
    fill(resumed, 3)
    for _ in range(5):
        assert resumed.replay.sample(32)[1].min() >= 256
    resumed.update()


def test_what_is_recorded_of_lag_and_ratio_is_in_updates_and_without_the_warm_up(
    folder: Folder,
) -> None:
    settings = config(publish_period_updates=2, batch_size=16, samples_per_insert=8.0)
    learner = folder.learner(settings)
    fill(learner, 20, policy_version=-1)  # 320 env steps, of which 200 are the warm-up
    for _ in range(6):
        learner.update()
    fill(learner, 1, policy_version=1)  # the third is out
    assert learner.records._lag() == 2 * 2
    learner.records.finish(learner, None, "done")
    result = json.loads((folder.path / "result.json").read_text())
    assert result["measured_samples_per_insert"] == pytest.approx(6 * 16 / (336 - 200))


def test_a_run_keeps_its_best_once_a_second_and_the_rest_at_its_end(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("learner.learner.time", SimpleNamespace(monotonic=lambda: now))
    learner = folder.learner(config())

    def plays(games: int, score: float) -> float:
        """-> mean of 100 games that the policy kept had."""
        fill(learner, games, episode=EpisodeStats(score, 60))
        return mean_score_of(folder.path / "best.safetensors")

    assert plays(100, 0.0) == 0.0
    assert plays(10, 1.0) == 0.0
    now += 1.0
    assert plays(10, 1.0) == pytest.approx(0.11)  # with the first of them
    learner.records.finish(learner, None, "done")
    assert mean_score_of(folder.path / "best.safetensors") == pytest.approx(0.2)


@pytest.mark.parametrize("lock_step", [False, True])
def test_what_solves_a_run_is_kept_at_once_and_in_lock_step_every_best(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, lock_step: bool
) -> None:
    monkeypatch.setattr("learner.learner.time", SimpleNamespace(monotonic=lambda: 100.0))
    learner = folder.learner(config(reward=0.035))
    if lock_step:
        learner._player = SimpleNamespace()  # type: ignore[assignment]
    kept: list[float] = []
    monkeypatch.setattr(
        learner, "save_policy", lambda: kept.append(learner.records.scores.mean_100)
    )
    fill(learner, 100, episode=EpisodeStats(0.0, 60))
    fill(learner, 4, episode=EpisodeStats(1.0, 60))
    assert kept == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04] if lock_step else [0.0, 0.04])


def test_what_a_run_saved_before_is_copied_and_not_packed_again_also_after_a_resume(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    real = segments._pack_segment
    monkeypatch.setattr(
        segments, "_pack_segment", lambda r, chunks: packed.append(len(chunks)) or real(r, chunks)
    )
    learner = folder.learner(config(), chunks=10)
    learner.save_now()
    fill(learner, 1)
    learner.save_now()
    resumed = folder.learner(config(), resume=True)
    fill(resumed, 2)
    resumed.save_now()
    assert packed == [10, 1, 2]


def test_a_resumed_run_does_not_give_a_better_policy_away(folder: Folder) -> None:
    def score(learner: Learner, value: float) -> bool:
        return learner.records.game(EpisodeStats(value, 60), env_steps=1, updates=1)

    learner = folder.learner(config(), chunks=1)
    for _ in range(100):
        score(learner, 1.0)
    learner.save_now()  # before the best policy is kept: it is newer than the checkpoint
    learner.save_policy()
    resumed = folder.learner(config(), resume=True)
    assert not score(resumed, -21.0)
    resumed.save_now()
    again = folder.learner(config(), resume=True)
    assert not score(again, 1.0)
    assert any(score(again, 2.0) for _ in range(100))  # a hundred of these beat it


def test_settings_reach_sampler_network_scaling_and_checkpoints(folder: Folder) -> None:
    sampler = make_sampler(config(prioritized=True, priority_alpha=0.7, priority_beta=0.2))
    assert isinstance(sampler, PrioritizedSampler)
    assert (sampler.alpha, sampler.beta) == (0.7, 0.2)
    for network, dueling in itertools.product(("nature", "nips"), (False, True)):
        wanted = network_for(config(network=network, dueling=dueling))
        assert state_size(wanted) == state_size(DQN((4, 84, 84), 3, network, dueling))
    learner = folder.learner(config(standardize=False, checkpoints_kept=7), chunks=20)
    assert learner.trainer.online.pixel_scale == 255
    assert not learner.trainer.online.background.any()
    assert learner.checkpoints.keep == 7


def test_without_an_average_a_checkpoint_plays_its_online_network(folder: Folder) -> None:
    learner = folder.learner(config(policy_average_updates=0), chunks=20)
    learner.save_now()
    (checkpoint,) = list_checkpoints(folder.path / "checkpoints")
    played = load_policy(checkpoint / "model.safetensors").network
    assert np.array_equal(state_vector(played), state_vector(learner.trainer.online))


def test_a_checkpoint_leaves_no_game_untold(folder: Folder) -> None:
    learner = folder.learner(config(), chunks=1)
    learner.records.game(EpisodeStats(3.0, 60), env_steps=16, updates=0)
    learner.save_now()
    with (folder.path / "metrics.csv").open(newline="") as file:  # as after a kill -9
        assert [row["score"] for row in csv.DictReader(file)] == ["3"]


def test_a_stop_that_comes_when_all_is_done_interrupts_nothing(folder: Folder) -> None:
    settings = config(max_env_steps=480)
    folder.learner(settings, chunks=30).save_now()
    told: Any = SimpleNamespace(reason="")

    def beat() -> None:  # in the last turn of the loop, and while the end is saved
        told.reason = "Told to stop."

    assert to_its_end(settings, folder, resume=True, stop=told, beat=beat) == 0
    result = json.loads((folder.path / "result.json").read_text())
    assert result["reason"] == "Stopped at --max-env-steps 480."


def test_the_learner_process_ends_in_order(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    beats: list[None] = []
    start, stop = LearnerEndpoint.start, LearnerEndpoint.stop

    def started(self: LearnerEndpoint, taken_transitions: int) -> None:
        begun.append(taken_transitions)
        start(self, taken_transitions)

    def stopped(self: LearnerEndpoint) -> None:
        stop(self)
        self._inbox.append(chunk_of(self.spec, 16, 9_000))  # it came in at the last moment

    def end() -> int:
        told: Any = SimpleNamespace(reason="Told to stop.")
        return to_its_end(config(), folder, resume=True, stop=told, beat=lambda: beats.append(None))

    monkeypatch.setattr("learner.checkpoint.SEGMENT_CHUNKS", 1)
    monkeypatch.setattr(LearnerEndpoint, "start", started)
    monkeypatch.setattr(LearnerEndpoint, "stop", stopped)
    folder.learner(config(), chunks=30).save_now()
    assert end() == 130
    assert begun == [480]  # what the run had counts against its limit
    assert len(beats) > 30  # one per segment: saving takes long
    assert json.loads((folder.path / "result.json").read_text())["env_steps"] == 496

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("learner.checkpoint._write_file", full)
    assert end() == 1
