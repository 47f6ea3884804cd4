"""What a simulation is told: measured costs, a learner, a network, how many actors."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from common.config import GAMES_EACH, Config
from common.errors import ConfigError
from common.presets import make_config
from learner.process import PUBLISH_SECONDS


@dataclass(frozen=True)
class Costs:
    """Seconds of one core's time for one of each, and bytes on the wire; `costs.py` measures them.

    I/O: the one thread in which ZeroMQ reads, writes and, with keys, encrypts.
    """

    actor_step: float
    """One env step of one game: emulation, inference, bookkeeping."""
    actor_chunk: float
    """Encode and send a chunk, ZeroMQ's thread included."""
    actor_weights: float
    """Receive, check and load a version of the weights, ZeroMQ's thread included."""
    router_chunk: float
    """The transport thread: receive, check and acknowledge a chunk, grant the next."""
    router_ping: float
    """Answer a small message with an acknowledgement."""
    router_ack: float
    """Announce a version to one actor."""
    router_weights: float
    """Take one actor's request for weights and hand them to ZeroMQ."""
    router_encode: float
    """Encode a version, once."""
    io_chunk: float
    io_weights: float
    io_message: float
    """One acknowledgement out or one small message in."""
    store: float
    """The training thread: put a chunk into the full replay."""
    update: float
    """One update of the preset with one thread, sampling and priorities included."""
    publish: float
    """Check and copy the weights for a new version."""
    chunk_bytes: float
    weights_bytes: float
    message_bytes: float

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Costs":
        """From the "costs" of a measurement. Raises ConfigError for one that is missing."""
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in record]:
            raise ConfigError(f"The measurement lacks {', '.join(missing)}: measure anew.")
        return cls(**{name: float(record[name]) for name in names})


@dataclass(frozen=True)
class Network:
    """The learner's link, full duplex; bandwidth in bytes per second each way."""

    bytes_per_second: float
    latency_seconds: float


def ethernet(gigabits: float, latency_seconds: float) -> Network:
    return Network(gigabits * 1e9 / 8, latency_seconds)


@dataclass(frozen=True)
class Scenario:
    """One run to be simulated.

    actors: also more than a configuration takes today (4,096). cores: all processes share so many;
    0: every actor has a core of its own, and the learner one for each of its three threads
    (training, transport, ZeroMQ's). config: its own number of actors does not count.
    """

    actors: int
    costs: Costs
    network: Network
    config: Config
    cores: int = 0
    learning: bool = True
    """False: what arrives is stored, and nobody is held back."""
    ahead: float = 0.0
    """At the start the actors have run ahead of training by this share of what they may."""
    publish_seconds: float = PUBLISH_SECONDS
    """At least so long between two versions, however many updates that is."""

    @property
    def tolerance_samples(self) -> float:
        """As `Config.tolerance_samples`, for any number of actors."""
        config = self.config
        chunks = max(1.0, self.actors * config.games_per_actor / 2)
        chosen = config.batch_size + chunks * config.samples_per_insert * config.chunk_transitions
        return config.samples_per_insert_tolerance or chosen


def preset(**overrides: Any) -> Config:
    """The preset `pong` with some fields replaced."""
    games = {"actors": 1, "envs_per_actor": GAMES_EACH}
    return make_config("pong", n_actions=6, frames_per_env_step=4, **games, **overrides)
