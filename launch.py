#!/usr/bin/env python3
"""The one door: `launch.py [train] ...`, `eval`, `bench`, `keys`, and the child processes' verbs.

This process starts and watches the others and imports neither torch nor zmq for that; with
`--actors 0` it is the whole system in lock-step.
"""

import os
import signal
import sys
import time

from common.errors import INTERRUPTED, USER_ERRORS

STARTED = time.monotonic()  # wall_seconds counts from here; the learner process is told
NOT_BEGUN = "Interrupted before anything had begun."


def leave(*_: object) -> None:
    """At once, and without an exception: one that is raised while a C extension is imported may be
    swallowed, or crash it."""
    os.write(2, f"{NOT_BEGUN}\n".encode())
    os._exit(INTERRUPTED)


if __name__ == "__main__":  # until main() knows better
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop_signal, leave)

import argparse
import contextlib
import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import command_line
from common.address import remove_socket
from common.config import MOST_GREEDY_GAMES, PLAY, VERSION, Config
from common.console import let_go, say
from common.errors import AUTHENTICATION, ConfigError, NoCheckpoint, UserError
from common.lifeline import (
    Heartbeats,
    StopSignal,
    die_with_parent,
    interrupt,
    stop_signals,
)
from common.machine import cores
from common.presets import did_you_mean
from common.run_folder import (
    has_checkpoint,
    locked,
    make_run_dir,
    require_unused,
    tentative_config,
)
from common.schedules import epsilon_of
from common.supervisor import ChildSpec, Supervisor

if TYPE_CHECKING:
    from common.policy_file import Policy

VERBS = ("train", "eval", "bench", "keys")
INTERNAL_VERBS = ("learner", "actor")  # the child processes of `train`
LIBRARIES = frozenset(
    {"torch", "gymnasium", "ale_py", "cv2", "numpy", "numba", "llvmlite", "zmq", "msgpack"}
    | {"psutil", "safetensors", "tensorboard"}
)


def main(argv: list[str] | None = None) -> int:
    """-> exit code.

    0 done or solved, 1 a bug, an actor that crashes or hangs again and again, training that
    diverged or a last save that failed, 2 a flag, file or setting that is wrong or does not suit
    this machine, 3 mismatch (another game, network or version), 4 authentication, 5 no checkpoint
    verifies, 130 interrupted, after saving, 128 + N when signal N killed the learner.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words and not words[0].startswith("-") else "train"
    try:
        if verb != "train":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if verb not in ("train", "eval"):  # which say themselves from when on
            signal.signal(signal.SIGINT, interrupt)
        if verb not in VERBS + INTERNAL_VERBS:
            known = ", ".join(VERBS)
            raise ConfigError(f"Unknown verb {verb!r}{did_you_mean(verb, VERBS)}; known: {known}.")
        commands = {"train": train, "eval": evaluate, "bench": bench, "keys": keys}
        commands |= {"learner": learner, "actor": actor}
        return commands[verb](words)
    except UserError as error:
        say(f"volley: {error}", error=True)
        return error.exit_code
    except KeyboardInterrupt:
        say(NOT_BEGUN if verb == "train" else "Interrupted.", error=True)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in LIBRARIES:
            raise
        say(
            f"volley: {error}: install what README's first command installs, and run launch.py by "
            "the Python of that environment.",
            error=True,
        )
        return ConfigError.exit_code
    finally:
        if verb in ("train", *INTERNAL_VERBS):  # of the others' lines none may be lost in silence
            let_go()


# -- train --------------------------------------------------------------------------------------


def train(words: list[str]) -> int:
    order = command_line.parse(words)
    from actors.game import make_game

    for one in stop_signals():  # there are files to put back; the supervisor takes over later
        signal.signal(one, interrupt)
    with no_system_exit():
        game = make_game(order.config.env)
    config = dataclasses.replace(
        order.config,
        run_id=os.urandom(8).hex(),
        n_actions=game.n_actions,
        frames_per_env_step=game.frames_per_env_step,
    )
    game.close()
    run_dir = order.resume or make_run_dir(config)
    with locked(run_dir, resume=order.resume is not None):
        if not order.resume:
            require_unused(run_dir)
        elif not has_checkpoint(run_dir):
            raise NoCheckpoint(f"{run_dir} holds no checkpoint to resume from.")
        say(f"Volley {VERSION}: {config.env}, preset {config.preset}, run folder {run_dir}")
        run = supervise if config.actor_count else train_in_lock_step
        with tentative_config(run_dir, config) as keep_config, no_system_exit():
            try:
                code = run(config, run_dir, order.resume is not None, keep_config)
            except UserError as error:  # of a run in this process
                say(f"volley: {error}", error=True)
                code = error.exit_code
        mendable = code in (ConfigError.exit_code, AUTHENTICATION) and has_checkpoint(run_dir)
        if code not in (0, *USER_ERRORS) or mendable:
            say(how_to_go_on(run_dir), error=True)  # stdout may be `| tee`, dead of the same Ctrl-C
    return code


def supervise(config: Config, run_dir: Path, resume: bool, keep_config: Callable[[], None]) -> int:
    """One learner and N actors, until the learner is done; keep_config if it showed life.

    Actor i's heartbeats are in slot i; after the actors' come the learner's, and the one in which
    it calls those that wait for mastery.
    """
    parent, folder = str(os.getpid()), str(run_dir)
    words = ["learner", folder, parent, str(STARTED), str(int(resume))]
    actors, environment = config.actors_in_all, learner_environment(config)
    learner_spec = ChildSpec("learner", command(words), actors, environment)

    def actor_spec(actor_id: int, incarnation: int) -> ChildSpec:
        words = ["actor", folder, parent, str(actor_id), str(incarnation)]
        return ChildSpec(f"actor-{actor_id}", command(words), actor_id, {"OMP_NUM_THREADS": "1"})

    beats = Heartbeats.create(run_dir / "heartbeats", actors + 2)
    with contextlib.closing(beats):
        supervisor = Supervisor(
            learner_spec,
            actor_spec,
            actors,
            beats,
            logs=run_dir / "logs",
            log=partial(say, error=True),
            # One for each core that the learner leaves them.
            first_actors=max(1, cores() - config.learner_threads),
            late_actors=actors - config.actor_count,
            late_are_called=lambda: beats.age_seconds(actors + 1) < math.inf,
        )
        try:
            return supervisor.run()
        finally:
            if supervisor.learner_began:
                keep_config()
            remove_socket(run_dir)


def train_in_lock_step(
    config: Config, run_dir: Path, resume: bool, keep_config: Callable[[], None]
) -> int:
    """Everything in this process, one thing at a time, and on the CPU the same each time."""
    # Before torch is imported; too late for what glibc reads, which costs nothing but time.
    os.environ.update(learner_environment(config))
    stop = StopSignal(*stop_signals())
    from actors.player import Player
    from learner.learner import Learner
    from learner.process import finish
    from learner.state_json import check_saves

    player = Player(config, seed=[config.seed, PLAY, 0, 0])
    check_saves(player.state_dict())  # now, not at the first save
    learner = Learner(config, run_dir, resume, STARTED, player)
    keep_config()
    reason = ""
    while not reason:
        for chunk in player.step(epsilon_of(config, 0, learner.inserted)):
            learner.insert(chunk)
            learner.confirm(play_greedily)
            while learner.may_sample():
                learner.update()
                if learner.weights_version > player.weights_version:
                    weights = learner.weights()
                    player.load_weights(weights.version, weights.vector)
        learner.records.tick(learner, None)
        learner.save_when_due()
        reason = learner.records.ending.finished(learner.inserted, stop.reason)
    code = finish(learner, None, reason, stop)
    player.close()
    return code


# -- the other verbs ----------------------------------------------------------------------------


def learner(words: list[str]) -> int:
    """learner RUN_DIR PARENT STARTED RESUME: the learner process of `train`."""
    folder, parent, started, resume = internal("learner", words)
    die_with_parent(int(parent))
    run_dir = Path(folder)
    config = Config.from_file(run_dir / "config.json")
    stop = StopSignal(*stop_signals())  # from whoever signals every process
    from learner.process import run_learner

    beats = Heartbeats.open(run_dir / "heartbeats")
    return run_learner(
        config,
        run_dir,
        resume=resume == "1",
        started=float(started),
        stop=stop,
        play_greedily=play_greedily,
        beat=lambda: beats.beat(config.actors_in_all),
        call_late_actors=lambda: beats.beat(config.actors_in_all + 1),
    )


def actor(words: list[str]) -> int:
    """actor RUN_DIR PARENT ACTOR_ID INCARNATION: one actor process of `train`."""
    folder, parent, actor_id, incarnation = internal("actor", words)
    die_with_parent(int(parent))
    run_dir = Path(folder)
    config = Config.from_file(run_dir / "config.json")
    from actors.actor import run_actor

    beats = Heartbeats.open(run_dir / "heartbeats")
    slot = int(actor_id)
    with no_system_exit():
        return run_actor(config, run_dir, slot, int(incarnation), lambda: beats.beat(slot))


def play_greedily(
    policy: "Policy", games: int, seed: int, every_step: Callable[[], None]
) -> list[float]:
    """What a learner has its policy evaluated by."""
    from actors.evaluator import evaluate

    with no_system_exit():
        return evaluate(policy, games, seed, every_step)


@contextlib.contextmanager
def no_system_exit() -> Iterator[None]:
    """Turns a game's sys.exit() into RuntimeError: exit codes are the program's own."""
    try:
        yield
    except SystemExit as left:
        raise RuntimeError("the game wanted to end its process") from left


def internal(verb: str, words: list[str]) -> list[str]:
    if len(words) != 4 or not words[1].isdigit():
        raise ConfigError(f"`{verb}` is started by `train`, not by hand: use `launch.py train`.")
    return words


def evaluate(words: list[str]) -> int:
    """eval RUN: greedy games of the run's best policy."""
    parser = argparse.ArgumentParser(prog="launch.py eval", description=evaluate.__doc__)
    parser.add_argument(
        "run", type=Path, help="run folder, one of its checkpoints, or a .safetensors file"
    )
    whole_games = f"whole games, at most {MOST_GREEDY_GAMES} (default: 30)"
    parser.add_argument("--games", type=int, default=30, help=whole_games)
    parser.add_argument("--seed", type=int, default=12345, help="of the games (default: 12345)")
    parser.add_argument("--env", default="", help="the policy's game, where it imports a module")
    given = parser.parse_args(words)
    for name, value, low, high in (
        ("games", given.games, 1, MOST_GREEDY_GAMES),
        ("seed", given.seed, 0, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise ConfigError(f"--{name} is {value}, expected {low} to {high}.")
    from actors.evaluator import evaluate as play
    from common.policy_file import load_policy

    signal.signal(signal.SIGINT, interrupt)
    path = given.run
    try:
        if path.suffix != ".safetensors":
            of_a_checkpoint = path / "model.safetensors"
            it_is_one = of_a_checkpoint.exists() or path.name.startswith("step-")
            path = of_a_checkpoint if it_is_one else path / "best.safetensors"
        path.stat()
    except OSError as error:
        raise ConfigError(
            f"There is no policy at {path}: {error.strerror}; a run writes one after 100 games, or "
            "when it ends."
        ) from None
    policy = load_policy(path)
    its_game = policy.config.env
    if given.run.suffix == ".safetensors" and ":" in its_game and its_game != given.env:
        raise ConfigError(
            f"{path} wants to import a module for its game, {its_game}: repeat that with "
            f"--env {its_game} if you trust the file."
        )
    if given.env not in ("", its_game):
        raise ConfigError(f"The policy in {path} plays {its_game} only: leave out --env.")
    with no_system_exit():
        scores = play(policy, given.games, given.seed)
    print("scores", *(f"{score:+.0f}" for score in sorted(scores)))
    mean = sum(scores) / len(scores)
    print(f"mean {mean:+.2f} over {len(scores)} greedy games, seed {given.seed}")
    return 0


def bench(words: list[str]) -> int:
    """bench [ROW ...]: how fast Volley is on this machine."""
    from benchmarks.__main__ import main

    return main(words)


def keys(words: list[str]) -> int:
    """keys FOLDER: make CURVE keys for a learner that listens beyond this machine."""
    parser = argparse.ArgumentParser(prog="launch.py keys", description=keys.__doc__)
    parser.add_argument("folder", type=Path, help="to be made, or empty")
    folder = parser.parse_args(words).folder
    from common.keys import create_keys

    create_keys(folder)
    print(f"Keys are in {folder}; pass --keys {folder}. See common/keys.py for what each is.")
    return 0


# -- commands -----------------------------------------------------------------------------------


def command(words: list[str]) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *words]


def learner_environment(config: Config) -> dict[str, str]:
    """What the learner's libraries must find when they start.

    A thread that waits for the others spins before it sleeps, but no longer than about 0.1 ms: most
    waits are shorter than a wake-up, and with actors on every core spinning is ruinous
    (docs/performance.md, "What was tried"). The count is libgomp's; other OpenMPs do not spin at
    all. And what an update frees is kept for the next one: glibc would return these megabytes to
    the system and take them back page by page, a fifth of an update's time.
    """
    threads = {"OMP_NUM_THREADS": str(config.learner_threads)}
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
    keeping = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
    return threads | waiting | keeping


def how_to_go_on(run_dir: Path) -> str:
    """The command that resumes a run which ended early."""
    if not has_checkpoint(run_dir):
        return "Nothing was saved yet."
    with contextlib.suppress(ValueError, OSError):  # elsewhere, or there is no such folder any more
        run_dir = run_dir.relative_to(Path.cwd())
    return "Go on with: " + shlex.join([sys.executable, sys.argv[0], "--resume", str(run_dir)])


if __name__ == "__main__":
    exit_code = main()
    for stop_signal in stop_signals():  # the code stands: a late second Ctrl-C must not change it
        signal.signal(stop_signal, signal.SIG_IGN)
    sys.exit(exit_code)
