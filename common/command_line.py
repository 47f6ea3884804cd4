"""The command line: a flag for every field of Config, and what a line of them asks for."""

import argparse
import ast
import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.address import check_bind
from common.config import VERSION, WITHOUT_FLAGS, Config, flag
from common.errors import ConfigError
from common.presets import make_config

# A resumed run continues the same experiment; these may differ without changing it.
RESUME_MAY_CHANGE = frozenset(
    {
        *("actors", "actors_mastered", "learner_threads", "window_chunks", "cuda"),
        *("replay_device", "bind", "keys"),
        *("reward", "confirm_games", "max_env_steps", "max_minutes"),
        *("log_period_seconds", "checkpoint_period_seconds", "checkpoints_kept"),
    }
)


@dataclass(frozen=True)
class Order:
    """What a command line asks for. resume: the run folder to go on with, or None."""

    config: Config
    resume: Path | None


def parse(words: list[str]) -> Order:
    """Flags -> configuration, complete for this machine. Raises ConfigError in a sentence."""
    given = vars(flag_parser().parse_args(words))
    resume = given.pop("resume", None)
    if resume is None:
        config = make_config(given.pop("preset", "pong"), **given)
    else:
        config = _resumed(Path(resume), given)
    _check_somebody_listens(given, config)
    check_bind(config.bind, config.keys)
    return Order(config.resolved(), Path(resume).resolve() if resume is not None else None)


def _resumed(run_dir: Path, given: dict[str, Any]) -> Config:
    """The run's own configuration with what may change changed."""
    config = Config.from_file(run_dir / "config.json")
    fixed = [flag(name) for name in given if name not in RESUME_MAY_CHANGE]
    if fixed:
        raise ConfigError(
            f"{fixed[0]} cannot change on --resume, which goes on with the same experiment in the "
            "same folder; start a new run for it."
        )
    if "actors" in given:  # what follows from it does so again, unless it is given too
        given = {"learner_threads": 0, "actors_mastered": None, **given}
    return dataclasses.replace(config, **given)


def _check_somebody_listens(given: dict[str, Any], config: Config) -> None:
    """Where an address or keys are given; those of a run that is resumed may be left unused."""
    for name in ("bind", "keys"):
        if given.get(name) and not config.actor_count:
            raise ConfigError(
                f"{flag(name)} is of no use with --actors 0: there everything is one process, and "
                "nobody listens; leave it out."
            )


def flag_parser() -> argparse.ArgumentParser:
    """One flag per field of Config; only those given appear in the result."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="`launch.py [train] FLAGS` trains; `launch.py eval RUN` plays a policy; "
        "`launch.py bench` measures; `launch.py keys FOLDER` makes keys for --bind. Defaults are "
        "the preset's; `pong` solves Pong soonest.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"volley {VERSION}")
    parser.add_argument("--resume", metavar="RUN", help="Go on with the run in this folder.")
    groups: dict[str, Any] = {}
    for doc in field_docs():
        if doc.name in WITHOUT_FLAGS:
            continue
        if doc.group not in groups:
            groups[doc.group] = parser.add_argument_group(doc.group)
        default = "left out" if doc.default in (None, "") else doc.default
        options: dict[str, Any] = {"dest": doc.name, "help": f"{doc.help} (pong: {default})"}
        if doc.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(doc.type) is Literal:
            options |= {"type": str, "metavar": "|".join(get_args(doc.type))}
        else:
            kind = doc.type if isinstance(doc.type, type) else get_args(doc.type)[0]  # X | None
            options |= {"type": kind, "metavar": kind.__name__.upper()}
        options["help"] = options["help"].replace("%", "%%")
        groups[doc.group].add_argument(flag(doc.name), **options)
    return parser


@dataclass(frozen=True)
class FieldDoc:
    """What the command line shows of one field."""

    name: str
    group: str
    help: str
    type: Any
    default: Any


def field_docs() -> list[FieldDoc]:
    """The fields in order, with the group and the help read from the strings in config.py."""
    hints, docs, group = get_type_hints(Config), [], ""
    defaults = {f.name: f.default for f in dataclasses.fields(Config)}
    body = ast.parse(inspect.getsource(Config)).body[0].body  # type: ignore[attr-defined]
    for here, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            name = here.target.id
            text = " ".join(ast.literal_eval(after.value).split())
            docs.append(FieldDoc(name, group, text, hints[name], defaults[name]))
        elif isinstance(here, ast.Expr) and ast.literal_eval(here.value).startswith("## "):
            group = ast.literal_eval(here.value)[3:]
    return docs
