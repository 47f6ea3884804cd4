"""What everything costs one core of this machine, as `benchmarks/scaling/simulation.py` takes it.

CPU time is read per thread, so a thread is charged its own work however many cores there are.
What runs all the time, an actor's env steps and the learner's updates, is timed by the clock on the
wall while the other of the two keeps the other core busy: cores of one machine slow each other
down, and in a run they are all busy.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.acting import all_joined, greedy
from benchmarks.experience import played
from benchmarks.learning import learning
from benchmarks.measure import Side, alternate, steadily
from benchmarks.scaling.transport_costs import SENDERS, Figures, full_chunks, transport
from benchmarks.worker import Worker
from common import messages
from common.config import FRAME_SHAPE, GAMES_EACH, Config
from common.messages import Chunk, Spec, Weights
from common.network import network_for, state_size, state_vector
from launch import learner_environment
from learner.learner import Learner

EPSILON = 0.05
TCP_AND_ETHERNET = 1538 / 1448  # bytes on the wire for a full packet's bytes of a message
MESSAGE_BYTES = 200.0  # on the wire, of an acknowledgement with its frame: some 100 are headers


# -- sides: an actor ------------------------------------------------------------------------------


def actor_sides() -> dict[str, Side]:
    """Seconds of an env step, by the clock on the wall; and of an actor's other work."""
    torch.set_num_threads(1)
    config = greedy(GAMES_EACH)
    player = all_joined(config)
    full = full_chunks(config)
    weights = Weights(1, state_vector(network_for(config)))
    frame = memoryview(messages.encode_weights(weights))
    size = state_size(network_for(config))

    def step() -> int:
        player.step(EPSILON)
        return len(player.games)

    def parts(seconds: float) -> Figures:
        """Shares of an env step, which need no second core."""
        player.timings.fractions()
        rate = steadily(step)(seconds)
        shares = player.timings.fractions()
        return {"rate": rate, "infer": shares["infer"], "play": shares["play"]}

    def encode(seconds: float) -> float:
        return cpu_each(lambda: messages.encode_chunk(1, 1, full[0]), seconds)

    def load(seconds: float) -> float:
        def once() -> None:
            messages.decode_header(frame)
            player.load_weights(1, messages.decode_weights(frame, size).vector)

        return cpu_each(once, seconds)

    return {"step": steadily(step), "parts": parts, "encode": encode, "load": load}


def cpu_each(work: Callable[[], object], seconds: float) -> float:
    """CPU seconds of this thread for one call."""
    work()
    calls, began, end = 0, time.thread_time(), time.perf_counter() + seconds / 4
    while time.perf_counter() < end:
        work()
        calls += 1
    return (time.thread_time() - began) / calls


# -- sides: the learner ---------------------------------------------------------------------------


def trainer_sides() -> dict[str, Side]:
    """Updates/s of the preset with a full replay; CPU seconds of storing and of publishing."""
    config = training()
    with tempfile.TemporaryDirectory(prefix="volley-bench-") as folder:
        learner = Learner(config, Path(folder), resume=False, started=time.monotonic())
    chunks = played(config, 4_000)
    full = [c for c in chunks if len(c) == config.chunk_transitions]
    for i in range(-(-config.replay_transitions // config.chunk_transitions) + 1):
        learner.replay.add(full[i % len(full)])

    def update() -> int:
        learner.update()
        return 1

    def store(seconds: float) -> float:
        places = iter(range(1 << 30))
        return cpu_each(lambda: learner.replay.add(full[next(places) % len(full)]), seconds)

    def publish(seconds: float) -> float:
        return cpu_each(learner.weights, seconds)

    def encode(seconds: float) -> float:
        weights = learner.weights()
        return cpu_each(lambda: messages.encode_weights(weights), seconds)

    others: dict[str, Side] = {"store": store, "publish": publish, "encode_weights": encode}
    return {"update": steadily(update), **others}


def training() -> Config:
    preset = Config()
    return learning(preset.batch_size, preset.network, threads=1)


# -- all of it ------------------------------------------------------------------------------------


def measure(rounds: int, seconds: float) -> tuple[Figures, dict[str, list[float]]]:
    """-> medians, by the names of `scenario.Costs` and some more; every round."""
    seen = acting_and_training(rounds, seconds)
    seen |= {f"{name}, no keys": f for name, f in transport(rounds, keys=False).items()}
    seen |= {f"{name}, keys": f for name, f in transport(rounds, keys=True).items()}
    typical = {name: statistics.median(figures) for name, figures in seen.items()}
    return costs(typical) | more(typical), seen


def acting_and_training(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Both alone and beside each other, in turns."""
    config = training()
    with (
        Worker("benchmarks.scaling.costs:actor_sides") as actor,
        Worker(
            "benchmarks.scaling.costs:trainer_sides", environment=learner_environment(config)
        ) as trainer,
    ):

        def beside(seconds: float) -> Figures:
            trainer.begin("update", seconds)
            step = actor.sides["step"](seconds)
            return {"step": step, "update": trainer.answer(seconds)}

        sides: dict[str, Side] = {f"{name}, alone": side for name, side in actor.sides.items()}
        sides |= {f"{name}, alone": side for name, side in trainer.sides.items()}
        sides["beside"] = beside
        seen = alternate(sides, rounds, seconds)
    both = seen.pop("beside")
    seen |= {f"{name}, beside": [each[name] for each in both] for name in ("step", "update")}
    for name in ("infer", "play"):
        seen[f"{name} share"] = [parts[name] for parts in seen["parts, alone"]]
    del seen["parts, alone"]
    return seen


def costs(seen: Figures) -> Figures:
    """As `benchmarks.scaling.scenario.Costs` wants them; transport without keys."""
    config = training()
    chunk, weights = wire_sizes(config)

    def of(name: str) -> float:
        return seen[f"{name}, no keys"]

    encode = seen["encode_weights, alone"] / SENDERS  # each of them is sent the same bytes
    return {
        "actor_step": 1 / seen["step, beside"],
        "actor_chunk": seen["encode, alone"] + of("chunk: process"),
        "actor_weights": seen["load, alone"] + of("version: process"),
        "router_chunk": of("chunk: router"),
        "router_ping": of("ping: router"),
        "router_ack": of("announcement: router"),
        "router_weights": max(0.0, of("version: router") - of("announcement: router") - encode),
        "router_encode": seen["encode_weights, alone"],
        "io_chunk": of("chunk: io"),
        "io_weights": of("version: io"),
        "io_message": of("ping: io") / 2,
        "store": seen["store, alone"],
        "update": 1 / seen["update, beside"],
        "publish": seen["publish, alone"],
        "chunk_bytes": chunk * TCP_AND_ETHERNET,
        "weights_bytes": weights * TCP_AND_ETHERNET,
        "message_bytes": MESSAGE_BYTES,
    }


def with_keys(record: Figures) -> Figures:
    """The same costs where everything is encrypted."""
    return record | {
        name.removesuffix(" with keys"): cost
        for name, cost in record.items()
        if name.endswith(" with keys")
    }


def more(seen: Figures) -> Figures:
    """What the document tells besides."""
    return {
        "io_chunk with keys": seen["chunk: io, keys"],
        "io_weights with keys": seen["version: io, keys"],
        "io_message with keys": seen["ping: io, keys"] / 2,
        "actor_chunk with keys": seen["encode, alone"] + seen["chunk: process, keys"],
        "actor_weights with keys": seen["load, alone"] + seen["version: process, keys"],
        "actor_step alone": 1 / seen["step, alone"],
        "update alone": 1 / seen["update, alone"],
        "infer share": seen["infer share"],
        "play share": seen["play share"],
        "encode": seen["encode, alone"],
        "load": seen["load, alone"],
    }


def wire_sizes(config: Config) -> tuple[int, int]:
    """Bytes of the messages of a full chunk and of the weights."""
    spec = Spec.of(config)
    chunk = Chunk(
        np.zeros((spec.max_frames, *FRAME_SHAPE), np.uint8),
        np.zeros(config.chunk_transitions, messages.TRANSITION_DTYPE),
        policy_version=0,
    )
    weights = Weights(0, state_vector(network_for(config)))
    return len(messages.encode_chunk(1, 1, chunk)), len(messages.encode_weights(weights))
