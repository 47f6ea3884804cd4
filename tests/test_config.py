"""Settings validate themselves, and the flags follow from them."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from common.command_line import RESUME_MAY_CHANGE, field_docs, parse
from common.config import OF_CHECKPOINTS, OF_TRANSITIONS, Config
from common.errors import ConfigError, Mismatch
from common.presets import PRESETS, did_you_mean, make_config
from common.run_folder import make_run_dir, replace_file, require_unused
from common.schedules import epsilon_of, ladder_epsilon, learning_rate_of, linear_epsilon
from tests.builders import config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset: str) -> None:
    assert make_config(preset).preset == preset


def test_every_field_has_a_group_and_a_help_text() -> None:
    docs = field_docs()
    assert [d.name for d in docs] == [f.name for f in dataclasses.fields(Config)]
    assert all(d.help and d.group for d in docs)


def test_the_book_is_the_reference_number_for_number() -> None:
    book = make_config("book")
    assert (book.gamma, book.batch_size, book.n_step) == (0.99, 32, 1)
    assert (book.replay_transitions, book.learning_starts_transitions) == (10_000, 10_000)
    assert (book.learning_rate, book.adam_epsilon, book.max_grad_norm) == (1e-4, 1e-8, 0)
    assert book.samples_per_insert == book.batch_size  # one update per env step
    assert (book.actors, book.envs_per_actor) == (1, 1)
    assert book.target_sync_period_updates == 1_000
    assert (book.loss, book.network, book.precision) == ("mse", "nature", "float32")
    assert not (book.double or book.dueling or book.standardize or book.prioritized)
    assert not (book.learning_rate_final or book.policy_average_updates)
    assert (book.reward, book.epsilon_final, book.epsilon_decay_env_steps) == (19.5, 0.02, 100_000)
    assert (book.epsilon_start, book.epsilon_ladder, book.samples_per_insert_mastered) == (1, 0, 0)
    assert (book.clip_rewards, book.episodic_life, book.noop_max) == (False, False, 0)


def test_the_frugal_preset_trains_more_on_less() -> None:
    frugal, pong = make_config("pong-frugal"), make_config("pong")
    assert frugal.samples_per_insert > 4 * pong.samples_per_insert
    assert frugal.learning_starts_transitions < pong.learning_starts_transitions
    assert frugal.epsilon_decay_env_steps < pong.epsilon_decay_env_steps
    assert (frugal.samples_per_insert, frugal.samples_per_insert_mastered) == (8.0, 0.0)
    assert (frugal.learning_starts_transitions, frugal.replay_transitions) == (4_000, 200_000)
    assert (frugal.epsilon_final, frugal.epsilon_decay_env_steps) == (0.01, 40_000)
    assert (frugal.learning_rate, frugal.learning_rate_final) == (3e-4, 0.0)
    assert (frugal.target_sync_period_updates, frugal.policy_average_updates) == (500, 0)
    assert (frugal.n_step, frugal.network, frugal.prioritized) == (5, "nips", True)


def test_atari_is_the_fields_usual_game() -> None:
    """Mnih et al. 2015 (no-ops, lives, signs of rewards, a million frames), with double, dueling,
    prioritized and Rainbow's 3-step return and epsilon of Adam (Hessel et al. 2018, table 1)."""
    atari = make_config("atari")
    assert (atari.noop_max, atari.episodic_life, atari.clip_rewards) == (30, True, True)
    assert (atari.network, atari.dueling, atari.double, atari.prioritized) == (
        *("nature", True, True, True),
    )
    assert (atari.replay_transitions, atari.learning_starts_transitions) == (1_000_000, 50_000)
    assert (atari.n_step, atari.gamma, atari.adam_epsilon) == (3, 0.99, 1.5e-4)
    assert (atari.learning_rate, atari.learning_rate_final) == (1e-4, 0.0)
    assert (atari.samples_per_insert, atari.samples_per_insert_mastered) == (8.0, 0.0)
    assert (atari.epsilon_final, atari.epsilon_decay_env_steps) == (0.01, 1_000_000)
    assert (atari.target_sync_period_updates, atari.policy_average_updates) == (2_000, 0)
    assert atari.reward >= 1e9  # out of reach: it ends by its limits only


def test_what_decides_the_meaning_of_chunks_and_checkpoints_is_all_there() -> None:
    of_a_game = {"env", "n_actions", "noop_max", "episodic_life", "clip_rewards"}
    of_learning = {"n_step", "gamma", "chunk_transitions", "network", "dueling"}
    assert set(OF_TRANSITIONS) == of_a_game | of_learning
    kept = {"replay_transitions", "prioritized", "policy_average_updates"}
    assert set(OF_CHECKPOINTS) == of_a_game | of_learning | kept


def test_a_resumed_run_may_change_how_it_is_run_and_nothing_that_it_learns() -> None:
    processes = {"actors", "actors_mastered", "learner_threads"}
    machine = {*processes, "window_chunks", "cuda", "replay_device"}
    addresses = {"bind", "keys"}
    limits = {"reward", "confirm_games", "max_env_steps", "max_minutes"}
    records = {"log_period_seconds", "checkpoint_period_seconds", "checkpoints_kept"}
    assert machine | addresses | limits | records == RESUME_MAY_CHANGE


def test_every_setting_is_of_one_kind_and_a_new_one_must_be_given_its_own() -> None:
    learning = {
        *("epsilon_start", "epsilon_final", "epsilon_decay_env_steps", "epsilon_ladder"),
        *("priority_alpha", "priority_beta", "learning_starts_transitions", "samples_per_insert"),
        *("samples_per_insert_mastered", "samples_per_insert_tolerance", "reward_mastered"),
        *("standardize", "precision", "double", "loss", "batch_size", "learning_rate"),
        *("learning_rate_final", "adam_epsilon", "max_grad_norm", "target_sync_period_updates"),
        *("publish_period_updates", "envs_per_actor", "idle_max_env_steps", "seed"),
    }
    of_the_run = {"preset", "run_dir", "run_id", "frames_per_env_step", "log_period_env_steps"}
    kinds = (set(OF_CHECKPOINTS), set(RESUME_MAY_CHANGE), learning, of_the_run)
    assert sorted(name for kind in kinds for name in kind) == sorted(
        field.name for field in dataclasses.fields(Config)
    )


@pytest.mark.parametrize(
    ("cores", "cuda", "actors"),
    [(1, False, 1), (2, False, 1), (3, False, 1), (16, False, 8), (16, True, 15), (1, True, 1)],
)
def test_the_actors_suit_the_machine_unless_they_are_given(
    cores: int, cuda: bool, actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.config.cores", lambda: cores)
    assert make_config("pong", cuda=cuda).actor_count == actors
    assert make_config("pong", cuda=cuda, actors=5).actor_count == 5


@pytest.mark.parametrize(
    ("settings", "in_all"),
    [
        ({}, 4),
        ({"cuda": True}, 3),
        ({"actors": 1}, 1),
        ({"actors": 6}, 6),
        ({"actors": 0}, 0),
        ({"actors": 1, "actors_mastered": 3}, 3),
        ({"actors_mastered": 2}, 2),
        ({"samples_per_insert_mastered": 0.0}, 2),
        ({"samples_per_insert_mastered": 1.8}, 2),
        ({"reward_mastered": 19.0}, 2),
        ({"reward_mastered": 20.0}, 4),
    ],
)
def test_every_core_plays_while_the_learner_rests_unless_the_actors_are_given(
    settings: dict[str, Any], in_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.config.cores", lambda: 4)
    assert make_config("pong", **settings).actors_in_all == in_all
    found = make_config("pong", **settings).resolved()
    monkeypatch.setattr("common.config.cores", lambda: 64)  # where it may be resumed
    assert found.actors_in_all == in_all


@pytest.mark.parametrize(
    ("preset", "actors", "games"),
    [("pong", 0, 16), ("pong", 1, 16), ("pong", 2, 8), ("pong-frugal", 1, 8), ("book", 1, 1)],
)
def test_an_actor_alone_plays_as_many_games_as_two(preset: str, actors: int, games: int) -> None:
    assert make_config(preset, actors=actors).games_per_actor == games
    assert make_config(preset, actors=actors).resolved().envs_per_actor == games
    assert make_config(preset, actors=actors, envs_per_actor=3).games_per_actor == 3


def test_a_run_goes_on_with_as_many_games_when_it_gets_more_actors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(parse(["--actors", "1"]).config.to_json())
    assert parse(["--resume", str(tmp_path), "--actors", "4"]).config.games_per_actor == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"actors": -1}, "--actors is -1, expected 0 to 4096"),
        ({"actors": 1.5}, "--actors is 1.5, expected int"),
        ({"actors": 3, "actors_mastered": 2}, "is 2, fewer than the 3 actors that play until then"),
        ({"actors": 0, "actors_mastered": 2}, "--actors-mastered is of no use with --actors 0"),
        ({"gamma": 1.5}, "--gamma is 1.5, expected 0 to 1"),
        ({"noop_max": 10_001}, "--noop-max is 10001, expected 0 to 10000"),
        ({"learning_rate": float("nan")}, "--learning-rate is nan, expected a number"),
        ({"loss": "hinge"}, "--loss is 'hinge', expected huber or mse"),
        ({"batch_size": 2.5}, "--batch-size is 2.5, expected int"),
        ({"learning_starts_transitions": 10**6}, "would be overwritten before anything is learned"),
        ({"batch_size": 20_000}, "the first batch could not be filled"),
        ({"samples_per_insert_tolerance": 0.5}, "is 0.5, expected 0 or at least 1."),
        ({"seed": 3_000_000_000}, "--seed is 3000000000, expected at most 2147483647."),
        ({"max_grad_norm": float("inf")}, "is inf, expected at most 1000000000."),
        ({"max_minutes": -1.0}, "--max-minutes is -1.0, expected at least 0."),
        ({"samples_per_insert": 0.0}, "--samples-per-insert is 0.0"),
        ({"samples_per_insert_mastered": 1e-4}, "0.0001, expected 0 or at least 0.001"),
        ({"reward_mastered": "20"}, "--reward-mastered is '20', expected a number"),
        (
            {"reward": 1e9, "learning_rate_final": 0.0, "samples_per_insert_mastered": 0.0}
            | {"actors": 1, "actors_mastered": 2},
            "--actors-mastered 2 needs a score that can be reached: give --reward-mastered, the",
        ),
        ({"reward": 1e9}, "--learning-rate-final 5e-05 needs a score that can be reached"),
        (
            {"reward": 1e9, "learning_rate_final": 0.0},
            "--samples-per-insert-mastered 0.05 needs a score that can be reached",
        ),
        ({"replay_device": "cuda"}, "needs --cuda: without it, --replay-device cpu."),
        ({"keys": "a\udcff"}, r"--keys is 'a\udcff', expected UTF-8."),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_its_flag(
    overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config("pong", **overrides)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


def test_what_the_game_is_asked_for_is_not_called_a_flag() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(env="Many-v0", n_actions=300)
    assert str(caught.value) == "Many-v0's n_actions is 300, expected 0 to 256."


def test_mastery_is_the_score_that_solves_rounded_up_unless_it_is_given() -> None:
    assert make_config("pong").resolved().reward_mastered == 20.0
    assert make_config("pong", reward=300.0).resolved().reward_mastered == 300.0
    assert make_config("atari", reward=math.inf).mastery_score == math.inf
    with pytest.raises(ConfigError, match="needs a score that can be reached"):
        make_config("pong", reward=math.inf)
    assert make_config("pong", reward=1e9, reward_mastered=18.0).resolved().mastery_score == 18.0


def test_a_resumed_run_may_be_solved_elsewhere_but_learns_as_before(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(parse([]).config.to_json())
    config = parse(["--resume", str(tmp_path), "--reward", "20.5"]).config
    assert (config.reward, config.mastery_score) == (20.5, 20.0)
    with pytest.raises(ConfigError, match="--reward-mastered cannot change on --resume"):
        parse(["--resume", str(tmp_path), "--reward-mastered", "20.5"])


def test_an_unknown_preset_names_its_neighbours() -> None:
    with pytest.raises(ConfigError, match="did you mean pong"):
        make_config("pnog")
    assert did_you_mean("zzz", PRESETS) == ""


def test_the_agreement_changes_with_what_both_sides_must_share_and_only_then() -> None:
    ours = make_config("pong").agreement()
    assert make_config("pong", learning_rate=1e-5, actors=3).agreement() == ours
    others: list[dict[str, Any]] = [{"n_step": 2}, {"gamma": 0.9}, {"env": "Breakout"}]
    for other in (*others, {"n_actions": 4}, {"run_id": "another"}):
        assert make_config("pong", **other).agreement() != ours


def test_a_configuration_survives_its_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = make_config("book", seed=5)
    path.write_text(config.to_json())
    assert Config.from_file(path) == config


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Config)])
def test_a_configuration_that_lacks_a_setting_is_not_completed_but_refused(field: str) -> None:
    found = json.loads(make_config("book").to_json())
    del found[field]
    with pytest.raises(Mismatch, match=f"^here is of another version of Volley: .*'{field}'"):
        Config.from_json(json.dumps(found), "here")


def test_a_configuration_with_an_unknown_setting_is_of_another_version() -> None:
    found = {**json.loads(make_config("book").to_json()), "hinge": 1}
    with pytest.raises(Mismatch, match="nothing is known here of 'hinge'"):
        Config.from_json(json.dumps(found), "here")


@pytest.mark.parametrize(
    "text", ["", "[]", "[[1, 2]]", '["ab"]', '""', "7", "null", '{"gamma": 0.9', "\ufeff{}"]
)
def test_what_is_no_configuration_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is not a configuration\.$"):
        Config.from_file(tmp_path / "config.json")


def test_a_configuration_with_a_setting_out_of_range_says_which(tmp_path: Path) -> None:
    found = {**json.loads(make_config("book").to_json()), "gamma": 1.5}
    with pytest.raises(ConfigError, match=r"^here is not a config.*--gamma is 1\.5, expected 0 to"):
        Config.from_json(json.dumps(found), "here")


def test_a_configuration_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json: it is not UTF-8\."):
        Config.from_file(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json: Is a directory\."):
        Config.from_file(path)


def test_epsilon_falls_as_in_the_reference() -> None:
    def book(env_steps: int) -> float:
        return linear_epsilon(env_steps, 1.0, 0.02, 100_000)

    assert [book(n) for n in (0, 50_000, 98_001, 10**7)] == [1.0, 0.5, 0.02, 0.02]
    assert book(99_000) == 0.02


def test_on_the_ladder_every_actor_has_an_epsilon_of_its_own_whatever_the_env_steps() -> None:
    wanted = config(epsilon_ladder=True, actors=8)
    assert [epsilon_of(wanted, i, 10**9) for i in range(8)] == [
        ladder_epsilon(i, 8) for i in range(8)
    ]
    assert epsilon_of(config(epsilon_ladder=True, actors=0), 0, 0) == 0.4  # lock-step's player
    late = config(epsilon_ladder=True, actors=2, actors_mastered=4)
    assert [epsilon_of(late, i, 0) for i in (1, 2, 3)] == [ladder_epsilon(1, 2)] * 3


def test_the_ladder_spans_ape_x_and_survives_one_actor() -> None:
    assert ladder_epsilon(0, 8) == pytest.approx(0.4)
    assert ladder_epsilon(7, 8) == pytest.approx(0.4**8)
    assert ladder_epsilon(0, 1) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("final", "progress", "expected"),
    [(0.0, 0.5, 4e-4), (0.0, 1.0, 4e-4), (1e-4, 0.0, 4e-4), (1e-4, 0.5, 2.5e-4), (1e-4, 1.0, 1e-4)],
)
def test_the_step_size_falls_with_progress_in_a_straight_line_unless_its_end_is_0(
    final: float, progress: float, expected: float
) -> None:
    rates = make_config("pong", learning_rate=4e-4, learning_rate_final=final)
    assert learning_rate_of(rates, progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    "words",
    [
        *(["--cuda", "--replay-device", "cuda"], ["--window-chunks", "4"], ["--keys", "k"]),
        *(["--learner-threads", "3"], ["--max-minutes", "5"], ["--log-period-seconds", "2"]),
        *(["--checkpoint-period-seconds", "9"], ["--checkpoints-kept", "5"], ["--reward", "18"]),
        *(["--max-env-steps", "7"], ["--actors", "5"], ["--bind", "tcp://127.0.0.1:5"]),
        ["--confirm-games", "8"],
    ],
)
def test_what_may_change_on_resume_does(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "config.json").write_text(parse([]).config.to_json())
    before, after = (parse(["--resume", str(tmp_path), *more]).config for more in ([], words))
    assert after != before


def test_the_learner_gets_the_cores_that_actors_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.config.cores", lambda: 16)
    found = make_config("pong").resolved()
    assert (found.actors, found.learner_threads) == (8, 8)
    (tmp_path / "config.json").write_text(found.to_json())
    resumed = parse(["--resume", str(tmp_path), "--actors", "3"]).config
    assert (resumed.actors, resumed.learner_threads) == (3, 13)


def test_how_many_play_from_mastery_on_follows_the_flags_of_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.config.cores", lambda: 4)
    (tmp_path / "config.json").write_text(parse([]).config.to_json())
    for words, actors, in_all in (
        ([], 2, 4),
        (["--actors", "6"], 6, 6),
        (["--actors", "1", "--actors-mastered", "3"], 1, 3),
        (["--actors-mastered", "8"], 2, 8),
    ):
        resumed = parse(["--resume", str(tmp_path), *words]).config
        assert (resumed.actors, resumed.actors_mastered) == (actors, in_all)


def test_a_folder_with_rows_and_no_checkpoint_is_not_begun_in_again(tmp_path: Path) -> None:
    require_unused(tmp_path)
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(ConfigError, match="ended before its first checkpoint"):
        require_unused(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "best.safetensors", "last.safetensors", "result.json"]
)
def test_a_run_does_not_begin_where_it_would_overwrite_something(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds a {name}, which a run there would overwrite"):
        require_unused(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_that_is_replaced_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(f"{path.name}: {path.read_text()}")
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        done.append(f"now {target.name}")
        return replace(self, target)

    monkeypatch.setattr("common.run_folder.os.fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    replace_file(tmp_path / "result.json", b"{}")
    assert done == ["result.json.unfinished: {}", "now result.json"]
    assert (tmp_path / "result.json").read_text() == "{}"


def test_runs_that_begin_in_one_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.run_folder.time.strftime", lambda _: "20261128-120000")
    folders = [make_run_dir(make_config("atari", env="ALE/Pong-v5")) for _ in range(3)]
    names = [folder.relative_to(tmp_path).as_posix() for folder in folders]
    first = "runs/ALE-Pong-v5-atari-0-20261128-120000"
    assert names == [first, f"{first}-2", f"{first}-3"]
