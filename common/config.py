"""One frozen dataclass holds every setting; the flags and their help follow from it.

A bare string that starts with `## ` opens a group of flags; the string under a field is its help.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.errors import ConfigError, Mismatch
from common.machine import cores

FRAME_SHAPE = (84, 84)
STACK = 4  # frames in one observation
MOST_IDLE_ENV_STEPS = 30  # with which a greedy Atari game begins
MOST_GREEDY_GAMES = 1000  # all are played at once
OUT_OF_REACH = 1e9  # a score that says: never
LEAST_SAMPLES_PER_INSERT = 0.001
# Of an actor that learns alone, and of one among others: one batch of more is played faster, but
# the more games there are in all, the later their scores tell how the policy plays.
GAMES_ALONE, GAMES_EACH = 16, 8
VERSION = "0.1.0"


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Defaults are the preset `pong`."""

    """## The run"""
    preset: str = "pong"
    """Starting values: pong (soonest solved), pong-frugal (fewest env steps to good greedy
    play), book (the reference program), atari (other games)."""
    env: str = "PongNoFrameskip-v4"
    """Game, a gymnasium id; `module:Id` imports the module first."""
    seed: int = 0
    """Root of every random number of the run."""
    run_dir: str = ""
    """Folder of the run; empty: runs/<env>-<preset>-<seed>-<time>."""
    reward: float = 19.5
    """Solved when the mean score of the last 100 finished games exceeds this, and greedy games
    confirm it (see --confirm-games)."""
    reward_mastered: float | None = None
    """Mean score of the last 10 games with which mastery begins; it ends when that mean is below
    this and below --reward. Samples per insert and the step size follow it; left out: --reward, as
    it was when the run began, rounded up."""
    confirm_games: int = 30
    """Greedy games that are played when --reward is exceeded: their mean must be at least that,
    rounded up, for the run to count as solved; else learning goes on. 0: none."""
    max_env_steps: int = 0
    """Stop after so many env steps (one decision, 4 emulator frames); 0: no limit."""
    max_minutes: float = 0.0
    """Stop after so many minutes, start-up and what came before a resume included; 0: no limit."""

    """## The game"""
    noop_max: int = 0
    """1 to so many no-ops after a reset, before FIRE: single frames where the game is NoFrameskip,
    else env steps; 0: none."""
    episodic_life: bool = False
    """Treat a lost life as the end of an episode (learning only; scores are of whole games)."""
    n_actions: int = 0
    """Size of the action set; asked of the game at start."""
    frames_per_env_step: int = 0
    """Emulator frames of one env step; asked of the game at start."""
    clip_rewards: bool = False
    """Learn from the sign of the reward; reported scores stay unclipped."""

    """## Acting"""
    actors: int | None = None
    """Actor processes; left out: half of the cores, or with --cuda all but one (book: 1); 0:
    everything in this process in lock-step (bit-reproducible on the CPU)."""
    actors_mastered: int | None = None
    """So many once the game is mastered and the learner rests: the others start then, and stay;
    left out: one for each core, but none more where --actors is given, with --cuda and where the
    learner does not rest."""
    envs_per_actor: int | None = None
    """Games per actor, stepped in turn with one batched forward pass; left out: 16 where one actor
    begins alone, 8 of each of several (book: 1, pong-frugal: 8)."""
    epsilon_start: float = 1.0
    """Exploration at env step 0."""
    epsilon_final: float = 0.002
    """Exploration when the decay is over."""
    epsilon_decay_env_steps: int = 120_000
    """Env steps of all actors in which epsilon falls by 1, down to epsilon_final."""
    epsilon_ladder: bool = False
    """Give actor i of N a constant epsilon of its own: 0.4^(1 + 7 i / (N - 1)), as Ape-X does."""
    idle_max_env_steps: int = MOST_IDLE_ENV_STEPS
    """Do nothing for 0 to so many env steps when an Atari game begins, as `launch.py eval` does, or
    all games of a policy that hardly explores would be nearly the same one."""
    n_step: int = 5
    """Rewards summed before bootstrapping."""
    gamma: float = 0.99
    """Discount per env step."""
    chunk_transitions: int = 64
    """Transitions sent and stored together."""
    window_chunks: int = 16
    """Chunks an actor may have under way, unacknowledged."""

    """## Replay"""
    replay_transitions: int = 200_000
    """Capacity."""
    learning_starts_transitions: int = 10_000
    """Transitions inserted before the first update."""
    replay_device: Literal["cpu", "cuda"] = "cpu"
    """Where the frames live."""
    prioritized: bool = True
    """Sample in proportion to |TD error|^alpha (Schaul et al. 2016) instead of uniformly."""
    priority_alpha: float = 0.6
    """Exponent of the priorities."""
    priority_beta: float = 0.4
    """Exponent of the importance weights; constant (the paper raises it to 1 on the way)."""
    samples_per_insert: float = 1.8
    """Transitions trained on per transition inserted; couples the learner's rate to the actors'."""
    samples_per_insert_mastered: float = 0.05
    """At most so many while the game is mastered (see --reward-mastered): what is left then is to
    show it in 100 games, and the policy that is kept should be the one that played them, so the
    learner rests; 0, or where --reward asks for more than that: the ratio stays."""
    samples_per_insert_tolerance: float = 0.0
    """How many samples the actors may run ahead of that ratio; 0: chosen to suit."""

    """## Learning"""
    cuda: bool = False
    """Learn on the GPU."""
    learner_threads: int = 0
    """CPU threads of the learner; 0: the cores that --actors leaves over, at least one."""
    network: Literal["nature", "nips"] = "nips"
    """nips: 16-32 filters, 256 units (Mnih et al. 2013); nature: 32-64-64, 512 (2015)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the factors in the products of a network that learns; sums stay float32. auto: bfloat16 on
    a CPU that multiplies it natively, TensorFloat-32 in a GPU's convolutions, else float32."""
    dueling: bool = False
    """Separate value and advantage streams (Wang et al. 2016)."""
    double: bool = False
    """The online network chooses, the target network values (van Hasselt et al. 2016)."""
    standardize: bool = True
    """Feed (x - background) / scale, each pixel's median and the root mean square of all distances
    from it in the warm-up, instead of x / 255."""
    loss: Literal["huber", "mse"] = "huber"
    """Loss of the TD error."""
    batch_size: int = 32
    """Transitions per update."""
    learning_rate: float = 5e-4
    """Adam's step size; where it follows the scores, while the mean of the last 10 games is at the
    lowest of the run."""
    learning_rate_final: float = 5e-5
    """What it is while that mean is at --reward-mastered or above, and in a straight line between;
    0: the step size does not follow the scores."""
    adam_epsilon: float = 1e-8
    """Adam's epsilon."""
    max_grad_norm: float = 10.0
    """Clip the gradient's norm to this before the step; 0: never."""
    target_sync_period_updates: int = 300
    """Updates between copies of the online network to the target network."""
    publish_period_updates: int = 20
    """Updates from one version of the weights to the next; actor processes are sent ten versions a
    second at most."""
    policy_average_updates: int = 500
    """Play, and keep as the policy, an exponential average of the weights over about so many
    updates; 0: the newest weights."""

    """## Transport"""
    bind: str = ""
    """Where the learner listens, e.g. tcp://127.0.0.1:5555; empty: a private socket file."""
    keys: str = ""
    """Folder of CURVE keys (`launch.py keys`); required by any bind beyond this machine."""
    run_id: str = ""
    """Of this start of this run and no other; drawn at start."""

    """## Records"""
    log_period_seconds: float = 10.0
    """Seconds between lines on the console, rows in metrics.csv and points in TensorBoard."""
    log_period_env_steps: int = 1_000
    """The same in lock-step, where rows must not depend on the clock."""
    checkpoint_period_seconds: float = 300.0
    """Seconds between checkpoints; 0: only at the end."""
    checkpoints_kept: int = 2
    """Older checkpoints are removed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        for names, low, high in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not low <= value <= high:
                    what = f"{self.env}'s {name}" if name in OF_THE_GAME else flag(name)
                    raise ConfigError(f"{what} is {value}, expected {_bounds(value, low, high)}.")
        self._check_together()

    def _check_together(self) -> None:
        if self.learning_starts_transitions > self.replay_transitions:
            raise ConfigError(
                f"--learning-starts-transitions ({self.learning_starts_transitions}) exceeds "
                f"--replay-transitions ({self.replay_transitions}): what was played first would be "
                "overwritten before anything is learned; lower the one or raise the other."
            )
        if self.batch_size > self.learning_starts_transitions:
            raise ConfigError(
                f"--batch-size ({self.batch_size}) exceeds --learning-starts-transitions "
                f"({self.learning_starts_transitions}): the first batch could not be filled; "
                "lower the one or raise the other."
            )
        room = 5 * self.batch_size + 2 * self.chunk_transitions
        if self.replay_transitions < room:  # a transition of a short episode takes five frames
            raise ConfigError(
                f"--replay-transitions ({self.replay_transitions}) could hold less than a batch "
                f"when episodes are short; with this batch and chunk it must be at least {room}."
            )
        if self.replay_device == "cuda" and not self.cuda:
            raise ConfigError("--replay-device cuda needs --cuda: without it, --replay-device cpu.")
        late = self.actors_in_all > self.actor_count
        if late and not self.actor_count:
            raise ConfigError(
                "--actors-mastered is of no use with --actors 0, where everything is one process; "
                "leave it out."
            )
        for name, given, instead in (
            ("learning_rate_final", self.learning_rate_final, "set it to 0"),
            ("samples_per_insert_mastered", self.samples_per_insert_mastered, "set it to 0"),
            ("actors_mastered", late and self.actors_in_all, "leave it out"),
        ):
            if given and self.mastery_score >= OUT_OF_REACH:
                raise ConfigError(
                    f"{flag(name)} {given:g} needs a score that can be reached: give "
                    f"--reward-mastered, the score of good play, or {instead}."
                )
        if self.actors_in_all < self.actor_count:
            raise ConfigError(
                f"--actors-mastered is {self.actors_mastered}, fewer than the {self.actor_count} "
                "actors that play until then, and none of them is stopped: leave it out, or give "
                f"at least {self.actor_count}."
            )
        for name, least in _LEAST_IF_ANY.items():
            if 0 < (value := getattr(self, name)) < least:
                raise ConfigError(f"{flag(name)} is {value:g}, expected 0 or at least {least:g}.")

    @property
    def tolerance_samples(self) -> float:
        """The limiter's tolerance: as set, or a batch and a chunk for every two games.

        Games fill their chunks at different moments: with room for half of them at once nobody
        waits for credit while the learner keeps up. With less, actors take turns; the more, the
        longer the ratio may lag behind a change of speed. Actors that wait for mastery are not
        counted: when they play, the learner rests.
        """
        games = max(self.actor_count, 1) * self.games_per_actor
        chunks = max(1.0, games / 2)
        chosen = self.batch_size + chunks * self.samples_per_insert * self.chunk_transitions
        return self.samples_per_insert_tolerance or chosen

    def agreement(self) -> dict[str, Any]:
        """What actor and learner must have in common: that chunks mean the same to both, and the
        run, or an actor whose learner found its address in use would play for the other run."""
        return {name: getattr(self, name) for name in (*OF_TRANSITIONS, "run_id")}

    def resolved(self) -> "Config":
        """The same with what was left out filled in: actors, their games, threads, the score of
        mastery."""
        threads = self.learner_threads or max(1, cores() - self.actor_count)
        return dataclasses.replace(
            self,
            actors=self.actor_count,
            actors_mastered=self.actors_in_all,
            envs_per_actor=self.games_per_actor,
            learner_threads=threads,
            reward_mastered=self.mastery_score,
        )

    @property
    def mastery_score(self) -> float:
        """`reward_mastered`, or `good_score` when it is left out."""
        return self.good_score if self.reward_mastered is None else self.reward_mastered

    @property
    def good_score(self) -> float:
        """--reward rounded up: what fewer games must show than the hundred that exceed it."""
        return self.reward if math.isinf(self.reward) else float(math.ceil(self.reward))

    @property
    def rests_when_mastered(self) -> bool:
        """Is the ratio lower then? Not where mastery is less than what solves: there is more to
        learn."""
        lower = 0 < self.samples_per_insert_mastered < self.samples_per_insert
        return lower and self.mastery_score >= self.reward

    @property
    def actor_count(self) -> int:
        """`actors`, or what suits the machine when it is left out."""
        if self.actors is not None:
            return self.actors
        return max(1, cores() - 1 if self.cuda else cores() // 2)

    @property
    def actors_in_all(self) -> int:
        """Those that play from the start and those that wait for mastery: `actors_mastered`, or
        what suits the machine when it is left out."""
        if self.actors_mastered is not None:
            return self.actors_mastered
        if self.actors is not None or self.cuda or not self.rests_when_mastered:
            return self.actor_count
        return max(self.actor_count, cores())

    @property
    def games_per_actor(self) -> int:
        """`envs_per_actor`, or what suits the number of actors when it is left out."""
        if self.envs_per_actor is not None:
            return self.envs_per_actor
        return GAMES_EACH if self.actor_count > 1 else GAMES_ALONE

    def portable(self) -> "Config":
        """The same without what is of one run on one machine alone: its folder, its number, where
        its learner listened."""
        return dataclasses.replace(self, run_dir="", run_id="", bind="", keys="")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path, needed: Collection[str] | None = None) -> "Config":
        """Read a run's config.json. needed: as in `from_json`. Raises ConfigError when it is not
        one, Mismatch when it is another version's."""
        try:
            return cls.from_json(path.read_text(), str(path), needed)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"There is no run in {path.parent}: it has no {path.name}.") from None
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"Cannot read {path}: {why}.") from None

    @classmethod
    def from_json(cls, text: str, where: str, needed: Collection[str] | None = None) -> "Config":
        """The inverse of `to_json`.

        where: what to call its source in a message; needed: the settings that must be there, left
        out: all, or a version with other defaults would go on with another experiment. Where others
        are missing only these are taken: the rest need not go together with today's defaults.
        Raises ConfigError when it is no configuration, Mismatch when it is another version's.
        """
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ConfigError(f"{where} is not a configuration.")
        names = {field.name for field in dataclasses.fields(cls)}
        missing = (names if needed is None else set(needed)) - set(found)
        if odd := sorted(missing | (set(found) - names)):
            what = "it lacks" if odd[0] in missing else "nothing is known here of"
            raise Mismatch(
                f"{where} is of another version of Volley: {what} {odd[0]!r}; use the version that "
                "made it."
            )
        if needed is not None and names - set(found):
            found = {name: found[name] for name in needed}
        try:
            return cls(**found)
        except ConfigError as error:
            raise ConfigError(f"{where} is not a configuration: {error}") from None


OF_THE_GAME = frozenset({"n_actions", "frames_per_env_step"})
"""What the game is asked for."""

WITHOUT_FLAGS = OF_THE_GAME | {"run_id"}
"""What nobody sets by hand."""

# The second word of every seed: streams of random numbers of one run that never meet.
PLAY, SAMPLING, EVALUATION, CONFIRMATION = 0, 1, 2, 3

OF_TRANSITIONS = (
    *("env", "n_actions", "noop_max", "episodic_life", "clip_rewards"),
    *("n_step", "gamma", "chunk_transitions", "network", "dueling"),
)
"""What decides what a chunk, or a checkpoint's replay and weights, mean."""

OF_CHECKPOINTS = (
    *OF_TRANSITIONS,
    *("replay_transitions", "prioritized", "policy_average_updates"),
)
"""What a checkpoint must have in common with the run that goes on from it."""

_RANGES: list[tuple[str, float, float]] = [
    ("actors actors_mastered", 0, 4096),
    ("envs_per_actor", 1, 1024),
    ("seed", 0, 2**31 - 1),
    ("confirm_games", 0, MOST_GREEDY_GAMES),
    ("noop_max idle_max_env_steps", 0, 10_000),
    ("max_env_steps max_minutes", 0, 1e12),
    ("n_actions frames_per_env_step", 0, 256),
    ("epsilon_start epsilon_final gamma priority_alpha priority_beta", 0, 1),
    ("epsilon_decay_env_steps", 1, 10**12),
    ("n_step", 1, 50),
    ("chunk_transitions", 1, 1024),
    ("window_chunks", 1, 1024),
    ("replay_transitions learning_starts_transitions", 1, 10**9),
    ("samples_per_insert", LEAST_SAMPLES_PER_INSERT, 1000),
    ("samples_per_insert_mastered", 0, 1000),
    ("samples_per_insert_tolerance", 0, 1e12),
    ("learner_threads", 0, 1024),
    ("batch_size", 1, 65536),
    ("learning_rate adam_epsilon", 1e-12, 1),
    ("learning_rate_final", 0, 1),
    ("max_grad_norm", 0, 1e9),
    ("target_sync_period_updates publish_period_updates log_period_env_steps", 1, 10**9),
    ("policy_average_updates", 0, 10**9),
    ("log_period_seconds", 0.05, 86400),
    ("checkpoint_period_seconds", 0, 1e9),
    ("checkpoints_kept", 1, 1000),
]

# 0 has a meaning of its own. A smaller tolerance could be lost in the rounding of large counters.
_LEAST_IF_ANY = {
    "samples_per_insert_mastered": LEAST_SAMPLES_PER_INSERT,
    "samples_per_insert_tolerance": 1.0,
}


def flag(field_name: str) -> str:
    """`max_minutes` -> `--max-minutes`."""
    return "--" + field_name.replace("_", "-")


@functools.cache
def _type_hints() -> dict[str, Any]:
    return get_type_hints(Config)


def _check_type(name: str, value: Any) -> None:
    hint = _type_hints()[name]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{flag(name)} is {value!r}, expected {' or '.join(get_args(hint))}.")
    elif type(None) in get_args(hint):
        if value is not None:
            _check_plain(name, value, get_args(hint)[0])
    else:
        _check_plain(name, value, hint)


def _check_plain(name: str, value: Any, hint: Any) -> None:
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ConfigError(f"{flag(name)} is {value!r}, expected a number.")
    elif type(value) is not hint:
        raise ConfigError(f"{flag(name)} is {value!r}, expected {hint.__name__}.")
    elif hint is str and not is_utf8(value):
        raise ConfigError(f"{flag(name)} is {value!r}, expected UTF-8.")


def is_utf8(text: str) -> bool:
    """Not so where bytes of a path are no text: TensorBoard, for one, could not write them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bounds(value: float, low: float, high: float) -> str:
    """In words; bounds that nobody means to reach are named to who went past them only."""
    if high < 1e9:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if value < low else f"at most {high:.15g}"
