"""Chunks of Pong, played at random."""

from actors.player import Player
from common.config import Config
from common.messages import Chunk


def played(config: Config, transitions: int) -> list[Chunk]:
    """At least so many transitions in the chunks that an actor of this configuration makes."""
    player = Player(config, [config.seed])
    chunks: list[Chunk] = []
    while sum(map(len, chunks)) < transitions:
        chunks += player.step(epsilon=1.0)
    player.close()
    return chunks
