#!/usr/bin/env python3
"""The one door: `launch.py [train] ...`, `eval`, `keys`, and the child processes' own verbs.

This process starts and watches the others and imports neither torch nor zmq for it; with
`--actors 0` it is the whole system in lock-step.
"""

import time

STARTED = time.time()  # wall_seconds counts from here

import argparse  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import fcntl  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal, get_args, get_origin  # noqa: E402

from common.config import (  # noqa: E402
    VERSION,
    Config,
    ConfigError,
    did_you_mean,
    field_docs,
    flag,
    make_config,
)
from common.lifeline import Heartbeats, StopSignal, die_with_parent  # noqa: E402
from common.supervisor import ChildSpec, Supervisor  # noqa: E402

USAGE, NO_CHECKPOINT, INTERRUPTED = 2, 5, 130
VERBS = ("train", "eval", "keys", "learner", "actor")
# A resumed run continues the same experiment; these may differ without changing it.
RESUME_MAY_CHANGE = frozenset(
    {
        *("actors", "learner_threads", "window_chunks", "cuda", "bind", "keys"),
        *("reward", "max_env_steps", "max_minutes"),
        *("log_period_seconds", "checkpoint_period_seconds", "checkpoints_kept"),
    }
)


def main(argv: list[str] | None = None) -> int:
    """-> exit code: 0 done, 1 a bug, 2 usage, 3 mismatch, 5 no checkpoint, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words and not words[0].startswith("-") else "train"
    try:
        if verb not in VERBS:
            known = ", ".join(VERBS)
            raise ConfigError(f"Unknown verb {verb!r}{did_you_mean(verb, VERBS)}; known: {known}.")
        return {"train": train, "eval": evaluate, "keys": keys, "learner": learner, "actor": actor}[
            verb
        ](words)
    except ConfigError as error:
        print(f"volley: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:  # before anything was started that could be saved
        return INTERRUPTED
    except ImportError as error:
        if "libGL" not in str(error):
            raise
        print(f"volley: {error}", file=sys.stderr)
        return USAGE


# -- train --------------------------------------------------------------------------------------


def train(words: list[str]) -> int:
    config, run_dir, resume = settle(words)
    with locked(run_dir):
        if resume and not any((run_dir / "checkpoints").glob("step-*")):
            print(f"volley: {run_dir} holds no checkpoint to resume from.", file=sys.stderr)
            return NO_CHECKPOINT
        if not resume and (run_dir / "metrics.csv").exists():
            raise ConfigError(
                f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose "
                "another --run-dir."
            )
        from actors.game import make_game

        config = dataclasses.replace(config, n_actions=make_game(config.env).n_actions)
        (run_dir / "config.json").write_text(config.to_json())
        print(
            f"Volley {VERSION}: {config.env}, preset {config.preset}, run folder {run_dir}",
            flush=True,
        )
        if config.actor_count == 0:
            code = train_in_lock_step(config, run_dir, resume)
        else:
            code = supervise(config, run_dir, resume)
    if code == INTERRUPTED:
        print(f"Go on with: {resume_command(run_dir)}")
    return code


def supervise(config: Config, run_dir: Path, resume: bool) -> int:
    """One learner and N actors, until the learner is done."""
    parent = str(os.getpid())
    folder = str(run_dir)

    def learner_spec() -> ChildSpec:
        words = ["learner", folder, parent, str(STARTED), str(int(resume))]
        return ChildSpec("learner", command(words), config.actor_count, learner_environment(config))

    def actor_spec(actor_id: int, incarnation: int) -> ChildSpec:
        words = ["actor", folder, parent, str(actor_id), str(incarnation)]
        return ChildSpec(f"actor-{actor_id}", command(words), actor_id, {"OMP_NUM_THREADS": "1"})

    logs = run_dir / "logs"
    logs.mkdir(exist_ok=True)
    with contextlib.closing(
        Heartbeats.create(run_dir / "heartbeats", config.actor_count + 1)
    ) as beats:
        return Supervisor(
            learner_spec,
            actor_spec,
            config.actor_count,
            beats,
            logs=logs,
            log=lambda text: print(text, file=sys.stderr, flush=True),
            resume_hint=resume_command(run_dir),
        ).run()


def train_in_lock_step(config: Config, run_dir: Path, resume: bool) -> int:
    """Everything in this process, one thing at a time: the asynchronous form's oracle."""
    from actors.actor import actor_epsilon
    from actors.player import Player
    from learner.checkpoint import NoCheckpoint
    from learner.learner import Learner, finish

    stop = StopSignal(signal.SIGTERM, signal.SIGINT)
    try:
        learner = Learner(config, run_dir, resume, STARTED)
    except NoCheckpoint as error:
        print(f"volley: {error}", file=sys.stderr)
        return NO_CHECKPOINT
    player = Player(config, seed=[config.seed, 0, 0, 0])
    learner.attach_player(player)
    reason, saved = "", time.monotonic()
    while not reason:
        for chunk in player.step(actor_epsilon(config, 0, learner.inserted)):
            learner.insert(chunk)
            while learner.may_sample():
                learner.update()
                if learner.weights_due():
                    weights = learner.weights()
                    player.load_weights(weights.version, weights.vector)
        learner.records.tick(learner, None)
        if 0 < config.checkpoint_period_seconds < time.monotonic() - saved:
            saved = time.monotonic()
            learner.save(background=False)
        reason = stop.reason or learner.records.finished(learner.inserted)
    finish(learner, None, reason)
    player.close()
    return INTERRUPTED if stop.reason else 0


# -- the other verbs ----------------------------------------------------------------------------


def learner(words: list[str]) -> int:
    """learner RUN_DIR PARENT STARTED RESUME: the learner process of `train`."""
    folder, parent, started, resume = internal("learner", words)
    die_with_parent(int(parent))
    run_dir = Path(folder)
    config = Config.from_json(run_dir / "config.json")
    stop = StopSignal(signal.SIGTERM)  # heard also while torch is being imported
    from learner.checkpoint import NoCheckpoint
    from learner.learner import run_learner

    beats = Heartbeats.open(run_dir / "heartbeats")
    try:
        return run_learner(
            config,
            run_dir,
            resume=resume == "1",
            started=float(started),
            stop=stop,
            beat=lambda: beats.beat(config.actor_count),
        )
    except NoCheckpoint as error:
        print(f"volley: {error}", file=sys.stderr)
        return NO_CHECKPOINT


def actor(words: list[str]) -> int:
    """actor RUN_DIR PARENT ACTOR_ID INCARNATION: one actor process of `train`."""
    folder, parent, actor_id, incarnation = internal("actor", words)
    die_with_parent(int(parent))
    run_dir = Path(folder)
    config = Config.from_json(run_dir / "config.json")
    from actors.actor import run_actor
    from common.dealer import Refused

    beats = Heartbeats.open(run_dir / "heartbeats")
    slot = int(actor_id)
    try:
        return run_actor(config, run_dir, slot, int(incarnation), lambda: beats.beat(slot))
    except Refused as error:
        print(f"volley: the learner refused actor {slot}: {error}.", file=sys.stderr)
        return error.exit_code


def internal(verb: str, words: list[str]) -> list[str]:
    if len(words) != 4:
        raise ConfigError(f"`{verb}` is started by `train`, not by hand: use `launch.py train`.")
    return words


def evaluate(words: list[str]) -> int:
    """eval RUN: greedy games of the run's best policy."""
    parser = argparse.ArgumentParser(prog="launch.py eval", description=evaluate.__doc__)
    parser.add_argument("run", type=Path, help="run folder, or a .safetensors file")
    parser.add_argument("--games", type=int, default=30)
    parser.add_argument("--seed", type=int, default=12345)
    given = parser.parse_args(words)
    if given.games < 1:
        raise ConfigError(f"--games is {given.games}, expected at least 1.")
    from actors.evaluator import evaluate as play
    from actors.evaluator import load_policy

    path = given.run if given.run.suffix == ".safetensors" else given.run / "best.safetensors"
    scores = play(load_policy(path), given.games, given.seed)
    print("scores", *(f"{score:+.0f}" for score in sorted(scores)))
    mean = sum(scores) / len(scores)
    print(f"mean {mean:+.2f} over {len(scores)} greedy games, seed {given.seed}")
    return 0


def keys(words: list[str]) -> int:
    """keys FOLDER: make CURVE keys for a learner beyond this machine."""
    parser = argparse.ArgumentParser(prog="launch.py keys", description=keys.__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(words).folder
    from common.keys import create_keys

    create_keys(folder)
    print(f"Keys are in {folder}; pass --keys {folder}. See common/keys.py for what each is.")
    return 0


# -- flags, folders -----------------------------------------------------------------------------


def settle(words: list[str]) -> tuple[Config, Path, bool]:
    """The command line -> configuration, run folder (made), resume?"""
    given = vars(flag_parser().parse_args(words))
    resume = given.pop("resume", None)
    if resume:
        run_dir = Path(resume).resolve()
        config = Config.from_json(run_dir / "config.json")
        fixed = [flag(name) for name in given if name not in RESUME_MAY_CHANGE]
        if fixed:
            raise ConfigError(
                f"{fixed[0]} cannot change on --resume: it would be another experiment; "
                f"start a new run for it."
            )
        return dataclasses.replace(config, **given).resolved(), run_dir, True
    config = make_config(given.pop("preset", "pong"), **given).resolved()
    if config.bind:
        from common.keys import require_keys_beyond_loopback

        require_keys_beyond_loopback(config.bind, config.keys)
    if config.run_dir:
        run_dir = Path(config.run_dir)
    else:
        game = config.env.split(":")[-1].replace("/", "-")
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(STARTED))
        run_dir = Path("runs") / f"{game}-{config.preset}-{config.seed}-{stamp}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Cannot make the run folder {run_dir}: {error.strerror}; choose another --run-dir."
        ) from None
    return config, run_dir.resolve(), False


def flag_parser() -> argparse.ArgumentParser:
    """One flag per field of Config; only those given appear in the result."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Train. Defaults are the preset's; `pong` solves Pong soonest.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"volley {VERSION}")
    parser.add_argument("--resume", metavar="RUN", help="Go on with the run in this folder.")
    groups: dict[str, Any] = {}
    for doc in field_docs():
        if doc.group not in groups:
            groups[doc.group] = parser.add_argument_group(doc.group)
        options: dict[str, Any] = {"dest": doc.name, "help": f"{doc.help} (pong: {doc.default})"}
        if doc.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(doc.type) is Literal:
            options |= {"type": str, "metavar": "|".join(get_args(doc.type))}
        else:
            kind = int if doc.type == int | None else doc.type
            options |= {"type": kind, "metavar": kind.__name__.upper()}
        options["help"] = options["help"].replace("%", "%%")
        groups[doc.group].add_argument(flag(doc.name), **options)
    return parser


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep every other run out of the folder. Raises ConfigError when one is in it."""
    try:
        file = (run_dir / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the run folder {run_dir}: {error.strerror}; choose another --run-dir."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir} is in use by another run: choose another --run-dir, or end that run."
            ) from None
        yield


def command(words: list[str]) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *words]


def learner_environment(config: Config) -> dict[str, str]:
    """Idle threads sleep instead of spinning: with actors on every core, spinning is ruinous."""
    threads = str(config.learner_threads)
    return {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def resume_command(run_dir: Path) -> str:
    with contextlib.suppress(ValueError):
        run_dir = run_dir.relative_to(Path.cwd())
    return shlex.join([sys.executable, sys.argv[0], "--resume", str(run_dir)])


if __name__ == "__main__":
    sys.exit(main())
