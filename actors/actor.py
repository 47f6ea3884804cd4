"""The actor process: play, send chunks, take new weights."""

import signal
from collections.abc import Callable
from pathlib import Path

import torch

from actors.player import Player
from common.address import connect_endpoint
from common.compiled import load_compiler
from common.config import PLAY, Config
from common.console import say
from common.dealer import ActorEndpoint, LearnerGone
from common.errors import GOODBYE
from common.keys import load_actor_keys
from common.network import network_for, state_size
from common.schedules import epsilon_of


def run_actor(
    config: Config, run_dir: Path, actor_id: int, incarnation: int, beat: Callable[[], None]
) -> int:
    """Play until the learner says goodbye. -> exit code.

    beat: called every turn, and once a second while it waits for the learner. Raises Refused when
    the learner rejects this actor.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    keys = load_actor_keys(Path(config.keys)) if config.keys else None
    size = state_size(network_for(config))
    address = connect_endpoint(config, run_dir)
    endpoint = ActorEndpoint(config, address, actor_id, size, keys, on_wait=beat)
    try:
        load_compiler()  # while the learner begins
        endpoint.handshake()
        player = Player(config, life_seed(config, actor_id, incarnation, endpoint.env_steps))
        first = endpoint.first_weights()  # a resumed run must not start over with a random network
        player.load_weights(first.version, first.vector)
        while True:
            beat()
            if weights := endpoint.poll():
                player.load_weights(weights.version, weights.vector)
            for chunk in player.step(epsilon_of(config, actor_id, endpoint.env_steps)):
                with player.timings.section("send"):
                    endpoint.send(chunk)
            if player.timings.age_seconds > config.log_period_seconds:
                endpoint.report(player.timings.fractions())
    except LearnerGone as gone:
        say(f"Actor {actor_id}: {gone}.")
        return GOODBYE if endpoint.said_goodbye else 1
    finally:
        endpoint.close()


def life_seed(config: Config, actor_id: int, incarnation: int, env_steps: int) -> list[int]:
    """Of one life: neither a restarted actor nor one of a resumed run lives an earlier one again.

    env_steps: of the whole run, at the beginning of this life.
    """
    return [config.seed, PLAY, actor_id, incarnation, env_steps]
