"""The whole program as a user runs it: real processes, real Pong, bad input, kills, resume."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from common.config import WITHOUT_FLAGS, Config, flag
from common.dealer import LearnerGone
from common.errors import GOODBYE
from common.lifeline import Heartbeats
from common.network import network_for
from common.policy_file import save_policy
from launch import LIBRARIES, how_to_go_on, main
from tests.builders import CATCH, config
from tests.running import (
    ROOT,
    all_rows,
    free_address,
    hearing_hangups,
    last_row,
    launch,
    processes_of,
    run,
    until,
    updates,
    words_of,
)

QUICK = [
    *("--actors", "2", "--envs-per-actor", "2", "--network", "nips", "--learner-threads", "1"),
    *("--learning-starts-transitions", "400", "--replay-transitions", "20000"),
    *("--log-period-seconds", "1", "--samples-per-insert", "4"),
]
TAGS = {
    *("reward", "reward_100", "epsilon", "speed", "rollout/ep_rew_mean", "rollout/ep_len_mean"),
    *("train/loss", "train/q_mean", "train/grad_norm"),
    *("time/env_steps_per_s", "time/env_frames_per_s", "time/updates_per_s"),
    *("time/samples_per_insert", "replay/size", "replay/bytes", "actors/alive"),
    *("actors/restarts", "actors/policy_lag_updates", "actors/0/steps_per_s"),
    *("actors/1/steps_per_s", "transport/mb_per_s", "transport/refused"),
    *("timings/learner/train", "timings/learner/sample", "timings/actor-0/play"),
}


def tags(run_dir: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return set(events.Tags()["scalars"]) | set(events.Tags()["tensors"])


def test_pong_with_two_actors_ends_by_itself_with_complete_records(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code, output = run(
        *("--max-env-steps", "9000", "--run-dir", str(run_dir), *QUICK), cwd=tmp_path
    )
    assert code == 0, output
    result = json.loads((run_dir / "result.json").read_text())
    assert result["env_steps"] >= 9_000
    assert result["updates"] >= 150
    assert {"solved", "wall_seconds", "mean_score_100", "games", "device", "version"} <= set(result)
    assert {"captured_updates", "commit", "machine", "torch"} <= set(result)
    assert result["preset"] == "pong"
    assert result["games"] > 0
    assert tags(run_dir) >= {*TAGS, "config/text_summary"}
    assert processes_of(run_dir) == []
    assert list((run_dir / "ipc").iterdir()) == []
    assert list(tmp_path.iterdir()) == [run_dir]  # nothing is written outside it
    assert not os.path.lexists(run_dir / "heartbeats")


@pytest.mark.parametrize(("mastered", "joins"), [("-1000", True), ("1000", False)])
def test_another_actor_joins_once_the_game_is_mastered(
    mastered: str, joins: bool, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ["--actors", "1", "--actors-mastered", "2", "--reward-mastered", mastered]
    with launch("--env", CATCH, "--run-dir", str(run_dir), *QUICK, *words) as process:
        until(lambda: updates(run_dir) > 30, 60)  # when more than ten games are over
        if joins:
            until(lambda: "actors/1/steps_per_s" in tags(run_dir), 60)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["actors"], result["actors_mastered"]) == (1, 2)
    assert (run_dir / "logs" / "actor-1.0.log").exists() == joins
    assert result["games"] > 10
    assert processes_of(run_dir) == []


def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with launch("--run-dir", str(run_dir), *QUICK) as process:
        until(lambda: updates(run_dir) > 30, 60)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert processes_of(run_dir) == []
    assert re.search(r"Go on with: \S*python\S* \S*launch\.py --resume .*run", output)
    before = last_row(run_dir)
    more = str(int(before["env_steps"]) + 1_000)
    code, output = run("--resume", str(run_dir), "--max-env-steps", more)
    assert code == 0, output
    resumed_at = int(re.search(r"Resumed at ([\d,]+) env steps", output)[1].replace(",", ""))  # type: ignore[index]
    assert resumed_at == int(before["env_steps"])
    assert int(last_row(run_dir)["env_steps"]) >= int(more)
    rows = all_rows(run_dir)
    for column in ("env_steps", "updates", "games", "wall_seconds"):
        values = [float(row[column]) for row in rows]
        assert values == sorted(values), column
    epsilons = [float(row["epsilon"]) for row in rows]
    assert epsilons == sorted(epsilons, reverse=True)


GAME = ("slow_game", "time.sleep(60)")
# As C libraries do that are interrupted while they are imported.
LIBRARY = ("ale_py", "try: time.sleep(60)\nexcept KeyboardInterrupt: time.sleep(60)")


TRAIN, EVAL = ("--env", "slow_game:Slow-v0"), ("eval", "a_run")


@pytest.mark.parametrize(
    ("signum", "module", "wait", "words"),
    [
        (signal.SIGINT, *GAME, TRAIN),
        (signal.SIGTERM, *GAME, TRAIN),
        (signal.SIGHUP, *GAME, TRAIN),
        (signal.SIGINT, *LIBRARY, TRAIN),
        (signal.SIGTERM, *LIBRARY, TRAIN),
        (signal.SIGINT, *LIBRARY, EVAL),
    ],
)
def test_told_to_end_before_anything_has_begun_it_says_so(
    tmp_path: Path, signum: signal.Signals, module: str, wait: str, words: tuple[str, ...]
) -> None:
    """While a module is imported, which here takes for ever."""
    code = f"import pathlib, time\npathlib.Path('begun').touch()\n{wait}\n"
    (tmp_path / f"{module}.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with hearing_hangups():
        begun = launch(*words, cwd=tmp_path, env=environment)
    with begun as process:
        until((tmp_path / "begun").exists, 30)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted before anything had begun." in output and "Traceback" not in output


def test_a_stop_that_comes_too_late_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """While the interpreter is taken down, which here takes its time."""
    code = """
import pathlib, time
class Slow:
    def __del__(self, begun=pathlib.Path("begun").touch, wait=time.sleep):
        begun()
        wait(2)
slow = Slow()
"""
    (tmp_path / "slow_end.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with launch("--env", "slow_end:Nope-v0", cwd=tmp_path, env=environment) as process:
        until((tmp_path / "begun").exists, 30)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 2  # there is no such game


def test_a_game_that_ends_its_process_is_not_taken_for_a_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object) -> int:
        raise SystemExit(0)

    import actors.actor

    monkeypatch.setattr("launch.die_with_parent", lambda pid: None)
    monkeypatch.setattr(actors.actor, "run_actor", leave)
    (tmp_path / "config.json").write_text(config().to_json())
    with (
        contextlib.closing(Heartbeats.create(tmp_path / "heartbeats", 2)),
        pytest.raises(RuntimeError, match="the game wanted to end its process"),
    ):
        main(["actor", str(tmp_path), "1", "0", "0"])


class NoEndpoint:
    """An actor's endpoint that is connected to nobody."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def handshake(self) -> None: ...

    def close(self) -> None: ...


def test_every_life_of_every_actor_plays_games_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_at, seeds = [0], []

    class Endpoint(NoEndpoint):
        env_steps = property(lambda self: begun_at[0])

    class Seen(Exception): ...

    def player(config: object, seed: list[int]) -> None:
        seeds.append(tuple(np.random.SeedSequence(seed).generate_state(4)))
        raise Seen

    monkeypatch.setattr("launch.die_with_parent", lambda pid: None)
    monkeypatch.setattr("actors.actor.ActorEndpoint", Endpoint)
    monkeypatch.setattr("actors.actor.Player", player)
    with contextlib.closing(Heartbeats.create(tmp_path / "heartbeats", 4)):
        for seed in (0, 1):
            (tmp_path / "config.json").write_text(config(seed=seed).to_json())
            for actor_id, incarnation, begun_at[0] in itertools.product("012", "01", (0, 500)):
                with pytest.raises(Seen):
                    main(["actor", str(tmp_path), "1", actor_id, incarnation])
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 2 * 2


def test_a_learner_that_is_interrupted_itself_saves(tmp_path: Path) -> None:
    """As by `pkill -INT`, or a scheduler that signals every process of a job."""
    with launch("--run-dir", str(tmp_path), *QUICK) as process:
        until(lambda: updates(tmp_path) > 5, 60)
        next(p for p in processes_of(tmp_path) if "learner" in p.cmdline()).send_signal(
            signal.SIGINT
        )
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert list((tmp_path / "checkpoints").glob("step-*"))


PRETRAINED = str(ROOT / "pretrained" / "pong.safetensors")
BAD_INPUT = [
    (["--actors", "-1"], 2, "--actors is -1, expected 0 to 4096."),
    (["--actors", "two"], 2, "invalid int value: 'two'"),
    (["--preset", "pnog"], 2, "did you mean pong"),
    (["--env", "PnogNoFrameskip-v4"], 2, "PongNoFrameskip-v4"),
    (["trian"], 2, "did you mean train"),
    (["actor"], 2, "is started by `train`"),
    (["learner", "a", "b", "c", "d"], 2, "is started by `train`"),
    (["keys", str(ROOT / "README.md")], 2, "Cannot make keys in"),
    (["eval", str(ROOT), "--seed", "-1"], 2, "--seed is -1, expected 0 to 2147483647."),
    (["eval", PRETRAINED, "--games", "0"], 2, "--games is 0, expected 1 to 1000."),
    (["eval", PRETRAINED, "--games", "1001"], 2, "--games is 1001, expected 1 to 1000."),
    (["eval", PRETRAINED, "--env", "ALE/Breakout-v5"], 2, "plays PongNoFrameskip-v4 only"),
    (["--env", "a:b:c"], 2, "a:b:c"),
    (["--cuda"], 2, "--cuda needs an NVIDIA GPU"),
    (["--samples-per-insert-tolerance", "0.5"], 2, "expected 0 or at least 1."),
    (["--actors", "0", "--keys", "k"], 2, "--keys is of no use with --actors 0"),
    (["--replay-transitions", "900000000"], 2, "or fewer."),
    (["--bind", "tcp://*:5555"], 2, "launch.py keys"),
    (["--bind", "tcp://127.0.0.1:*"], 2, "a port of 1 to 65535"),
    (["--n-actions", "3"], 2, "unrecognized arguments"),
    (["--run-dir", "/proc/no/such"], 2, "Cannot make the run folder"),
    (["--resume", "/no/such/run"], 2, "There is no run in /no/such/run"),
    (["eval", "/no/such/run"], 2, "There is no policy at /no/such/run/best.safetensors"),
    (["eval", "r" * 300], 2, "File name too long"),
    (["--bind", "tcp://*:5555", "--keys", "k" * 300], 2, "Cannot read the key"),
]


@pytest.mark.parametrize(("words", "code", "sentence"), BAD_INPUT, ids=lambda v: str(v)[:30])
def test_bad_input_is_one_sentence_and_the_right_code(
    tmp_path: Path, words: list[str], code: int, sentence: str
) -> None:
    if words[0] == "--cuda":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    got, output = run(*words, cwd=tmp_path, timeout=60)
    assert got == code, output
    assert sentence in output
    assert "Traceback" not in output


def test_a_port_in_use_is_one_sentence_and_leaves_the_folder_to_the_next_try(
    tmp_path: Path,
) -> None:
    words = (*QUICK, "--run-dir", str(tmp_path), "--max-env-steps", "500", "--bind")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, output = run(*words, address)
    assert code == 2, output
    assert f"Cannot listen on {address}: Address already in use" in output
    assert "Traceback" not in output
    code, output = run(*words, free_address())
    assert code == 0, output


def test_an_unknown_key_ends_the_run_with_its_own_exit_code(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert run("keys", str(keys))[0] == 0
    (keys / "authorized" / "actor.public").unlink()
    code, output = run(
        *(*QUICK, "--run-dir", str(tmp_path / "run"), "--max-minutes", "1"),
        *("--bind", free_address(), "--keys", str(keys)),
    )
    assert code == 4, output
    assert "its key is not among the learner's authorized" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("where", ["__init__", "reset", "step"])
def test_a_game_that_ends_its_process_is_a_bug_in_lock_step_too(where: str, tmp_path: Path) -> None:
    words = ["--actors", "0", "--env", "tests.catch:Catch-v0", "--run-dir", str(tmp_path)]
    code = (
        "import sys, launch, tests.catch\n"
        f"tests.catch.Catch.{where} = lambda *given, **options: sys.exit()\n"
        f"sys.exit(launch.main({words}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done
    assert "RuntimeError: the game wanted to end its process" in done.stderr


def test_a_run_of_another_version_is_a_mismatch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "step-000000000001").mkdir(parents=True)
    older = json.loads(config().to_json())
    del older["noop_max"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert main(["--resume", str(tmp_path)]) == 3
    assert (
        "is of another version of Volley: it lacks 'noop_max'; use the version"
        in capsys.readouterr().err
    )


def test_what_the_run_said_before_is_kept_on_resume(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for words in ((*QUICK, "--max-env-steps", "300"), ("--max-env-steps", "400")):
        where = "--resume" if logs.exists() else "--run-dir"
        code, output = run(where, str(tmp_path), *words)
        assert code == 0, output
    assert {"learner.0.log", "learner.1.log"} <= {path.name for path in logs.iterdir()}


def test_a_resume_that_cannot_begin_changes_nothing(tmp_path: Path) -> None:
    words = ("--actors", "0", "--env", "tests.catch:Catch-v0", "--envs-per-actor", "2")
    words += ("--learning-starts-transitions", "200", "--max-env-steps", "300")
    code, output = run(*words, "--run-dir", str(tmp_path))
    assert code == 0, output
    before = (tmp_path / "config.json").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, output = run("--resume", str(tmp_path), "--actors", "1", "--bind", address)
    assert code == 2, output
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_learner_that_is_signalled_itself_saves(tmp_path: Path, signum: signal.Signals) -> None:
    """As every process of a session is that ends."""
    with hearing_hangups():
        process = launch("--run-dir", str(tmp_path), *QUICK)
    with process:
        until(lambda: updates(tmp_path) > 10, 60)
        (learner,) = [p for p in processes_of(tmp_path) if "learner" in words_of(p)]
        learner.send_signal(signum)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert list((tmp_path / "checkpoints").glob("step-*"))
    assert "Go on with" in output


def test_a_library_that_is_required_is_known_where_it_is_missing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split("[<>=]", library)[0] for library in project["dependencies"]}
    modules = {"opencv-python": "cv2", "pyzmq": "zmq"}
    assert {modules.get(name, name.replace("-", "_")) for name in required} <= LIBRARIES


def test_training_that_diverges_ends_with_advice_and_not_with_a_traceback(tmp_path: Path) -> None:
    diverging = """
import math, sys
import launch, learner.dqn as dqn
td_loss = dqn.td_loss
def grown(*words):
    loss, td_error, q = td_loss(*words)
    return loss * math.inf, td_error, q
dqn.td_loss = grown
sys.exit(launch.main(sys.argv[1:]))
"""
    words = ["--actors", "0", "--env", CATCH, "--network", "nips", "--run-dir", str(tmp_path)]
    command = [sys.executable, "-c", diverging, *words, "--learning-starts-transitions", "100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert "volley: The loss is inf at update 1: lower --learning-rate or set" in done.stderr
    assert "Traceback" not in done.stderr


def test_lock_step_that_ends_with_a_sentence_says_how_to_go_on_too(tmp_path: Path) -> None:
    breaking = """
import itertools, math, sys
import launch
from tests.catch import Catch
play, steps = Catch.step, itertools.count()
def step(self, action):
    obs, reward, *rest = play(self, action)
    return obs, math.nan if next(steps) == 700 else reward, *rest
Catch.step = step
sys.exit(launch.main(sys.argv[1:]))
"""
    words = ["--actors", "0", "--env", CATCH, "--network", "nips", "--run-dir", str(tmp_path)]
    words += ["--learning-starts-transitions", "100", "--checkpoint-period-seconds", "0.1"]
    command = [sys.executable, "-c", breaking, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    sentence, how = done.stderr.splitlines()
    assert sentence == "volley: Catch gave a reward of nan, expected a finite one."
    assert how.startswith("Go on with:") and how.endswith(f"--resume {tmp_path}")


def test_how_to_go_on_is_said_where_the_working_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, run = tmp_path / "gone", tmp_path / "run"
    gone.mkdir()
    (run / "checkpoints" / "step-000000000100").mkdir(parents=True)
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert how_to_go_on(run).endswith(f"--resume {run}")


def test_a_console_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    """`launch.py | tee log`, and Ctrl-C ends tee first."""
    with launch("--run-dir", str(tmp_path), *QUICK) as process:
        until(lambda: updates(tmp_path) > 10, 60)
        process.stdout.close()  # type: ignore[union-attr]
        games = len(all_rows(tmp_path))
        until(lambda: len(all_rows(tmp_path)) > games + 2, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert json.loads((tmp_path / "result.json").read_text())["reason"] == "Told to stop."
    assert list((tmp_path / "checkpoints").glob("step-*"))


def test_a_console_that_is_full_does_not_change_the_exit_code(tmp_path: Path) -> None:
    """`launch.py > log`, on a disk that takes no more."""
    words = [sys.executable, str(ROOT / "launch.py"), "--env", "PnogNoFrameskip-v4"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=full, cwd=tmp_path, env=buffered)
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["--run-dir"], ["--resume"]], ids=str)
def test_a_run_folder_whose_name_is_no_text_is_refused(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "config.json").write_text(config().to_json())
    code, output = run(*words, str(folder))
    assert code == 2 and "UTF-8" in output and "Traceback" not in output


def test_a_folder_whose_name_is_no_text_is_no_place_to_start_from(tmp_path: Path) -> None:
    here = tmp_path / os.fsdecode(b"here-\xff")
    here.mkdir()
    code, output = run("--env", CATCH, cwd=here)
    assert code == 2 and "is not UTF-8: choose another --run-dir" in output
    assert not list(here.iterdir())


def test_a_run_folder_is_used_by_one_run_at_a_time_and_never_overwritten(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with launch("--run-dir", str(run_dir), *QUICK) as process:
        until(lambda: updates(run_dir) > 0, 60)  # from then on SIGTERM is a wish to end
        code, output = run("--run-dir", str(run_dir))
        assert code == 2
        assert "is in use by another run: choose another --run-dir" in output
        code, output = run("--resume", str(run_dir))
        assert code == 2
        assert "is in use by another run: end it first" in output
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    code, output = run("--run-dir", str(run_dir))
    assert code == 2
    assert "holds a run already: continue it with --resume" in output
    code, output = run("--resume", str(run_dir), "--gamma", "0.5")
    assert code == 2
    assert "--gamma cannot change on --resume" in output
    for manifest in run_dir.glob("checkpoints/*/MANIFEST.json"):
        manifest.write_text("{}")
    code, output = run("--resume", str(run_dir))
    assert code == 5, output
    assert "No checkpoint" in output
    assert "Traceback" not in output


def test_eval_plays_the_policy_of_a_run(tmp_path: Path) -> None:
    words = ("--actors", "0", "--env", "tests.catch:Catch-v0", "--network", "nips")
    code, output = run(
        *(*words, "--run-dir", str(tmp_path), "--max-env-steps", "300"),
        *("--learning-starts-transitions", "200", "--envs-per-actor", "2"),
    )
    assert code == 0, output
    code, output = run("eval", str(tmp_path), "--games", "4")
    assert code == 0, output
    assert re.search(r"mean [+-]\d+\.\d\d over 4 greedy games", output)
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    code, of_checkpoint = run("eval", str(checkpoint), "--games", "4")
    assert code == 0, of_checkpoint
    code, alone = run("eval", str(tmp_path / "best.safetensors"))
    assert code == 2
    assert "wants to import a module for its game, tests.catch:Catch-v0" in alone
    assert of_checkpoint == output  # the run was too short for a best: it is the last one


def test_the_shipped_policy_wins() -> None:
    code, output = run("eval", PRETRAINED, "--games", "2")
    assert code == 0, output
    mean = float(re.search(r"mean ([+-][\d.]+) over 2 greedy games", output)[1])  # type: ignore[index]
    assert mean > 10


def test_bench_tells_its_rows() -> None:
    code, output = run("bench", "--help")
    assert code == 0 and "--full" in output and "12, 13" in output
    assert run("bench", "99")[0] == 2


@pytest.mark.parametrize(("goodbye", "code"), [(True, GOODBYE), (False, 1)])
def test_only_a_goodbye_lets_an_actor_leave_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goodbye: bool, code: int
) -> None:
    class Gone(NoEndpoint):
        said_goodbye = goodbye

        def handshake(self) -> None:
            raise LearnerGone("nothing was heard")

    monkeypatch.setattr("launch.die_with_parent", lambda pid: None)
    monkeypatch.setattr("actors.actor.ActorEndpoint", Gone)
    (tmp_path / "config.json").write_text(config().to_json())
    with contextlib.closing(Heartbeats.create(tmp_path / "heartbeats", 2)):
        assert main(["actor", str(tmp_path), "1", "0", "0"]) == code


def test_help_names_every_flag() -> None:
    code, output = run("--help")
    words = " ".join(output.split())
    assert code == 0 and "(pong: left out)" in words and "(pong: )" not in words
    for field in dataclasses.fields(Config):
        assert (flag(field.name) in output) == (field.name not in WITHOUT_FLAGS), field.name


def test_a_missing_library_is_one_sentence(tmp_path: Path) -> None:
    code = "import sys; sys.modules['gymnasium'] = None; import launch; sys.exit(launch.main([]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "install what README's first command installs" in done.stderr
    assert "Traceback" not in done.stderr


def test_eval_imports_a_module_only_where_it_is_named_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.safetensors"
    save_policy(file, network_for(config()), config(), {})
    assert main(["eval", str(file), "--games", "1", "--env", CATCH]) == 0
    for words in ([], ["--env", "other:Other-v0"]):
        assert main(["eval", str(file), *words]) == 2
        assert f"repeat that with --env {CATCH}" in capsys.readouterr().err
