"""A learner's endpoint in a process of its own: what it takes is checked, what it costs is told.

`main` prints its address, then a line of JSON ten times a second, until its standard input closes.
A line there says how many seconds each chunk is to take from now on. Chunks are numbered by
`numbered`; one that is missing, repeated or out of order ends the process.
"""

import collections
import json
import select
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import zmq

from common.config import Config
from common.keys import load_learner_keys
from common.messages import Chunk, Spec, Weights
from common.router import LearnerEndpoint
from learner.learner import make_sampler
from learner.replay import Replay
from tests.builders import chunk_of

WEIGHTS_SIZE = 10


def numbered(spec: Spec, sender: int, number: int) -> Chunk:
    """Chunk `number` (from 0) of this sender."""
    chunk = chunk_of(spec, spec.chunk_transitions, 0)
    chunk.transitions["n_step_return"][:2] = sender, number
    return chunk


def main(config_path: str, keys: str) -> None:
    """keys: a folder, or empty."""
    config, address = Config.from_file(Path(config_path)), "tcp://127.0.0.1:*"
    endpoint = LearnerEndpoint(config, address, load_learner_keys(Path(keys)) if keys else None)
    endpoint.publish(Weights(1, np.zeros(WEIGHTS_SIZE, np.float32)))
    replay = Replay(config, make_sampler(config))
    ahead = int(config.tolerance_samples)
    endpoint.set_insert_limit(ahead, 0)
    endpoint.start(0)
    print(endpoint._router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    process, taken, next_of, slow = psutil.Process(), 0, {}, 0.0
    next_report, waiting = 0.0, collections.deque[Chunk]()
    while True:
        if select.select([sys.stdin], [], [], 0.0)[0]:
            if not (line := sys.stdin.readline()):
                break
            slow = float(line)
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + 0.1
            report = {
                "chunks": sum(next_of.values()),
                "by_sender": next_of,
                "refused": endpoint.stats.refused,
                "duplicates": endpoint.stats.duplicates,
                "rss": process.memory_info().rss,
            }
            print(json.dumps(report), flush=True)
        waiting.extend(endpoint.drain())
        if not waiting:
            endpoint.wait(0.05)
            continue
        chunk = waiting.popleft()
        time.sleep(slow)
        replay.add(chunk)
        sender, number = map(int, chunk.transitions["n_step_return"][:2])
        expected = next_of.get(sender, 0)
        if number != expected:
            sys.exit(f"chunk {number} of sender {sender} came, {expected} was due")
        next_of[sender] = expected + 1
        taken += len(chunk)
        endpoint.set_insert_limit(taken + ahead, taken)
    endpoint.stop()
