"""Rows 7 and 8: updates, replay included, against the bare computation and against peers."""

import dataclasses
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.acting import precision_here, trained_vector
from benchmarks.experience import played
from benchmarks.measure import (
    UPDATES,
    Form,
    Goal,
    Row,
    Side,
    Step,
    alternate,
    fastest,
    steadily,
)
from benchmarks.peers.environment import Peers
from benchmarks.peers.plain import PlainLearner
from benchmarks.worker import Worker, versus
from common.config import Config
from common.machine import cores, multiplies_bfloat16
from common.network import load_state_vector, network_for
from common.presets import make_config
from launch import learner_environment
from learner.adam import Adam
from learner.dqn import Trainer, td_loss
from learner.learner import STANDARDIZE_FRAMES, Learner
from learner.replay import TransitionBatch

HELD_TRANSITIONS, PLAYED = 20_000, 4_000  # in replay; of them different ones


# -- sides ----------------------------------------------------------------------------------------


def learner_sides(
    batch: int, network: str, threads: int, precision: str, compiled: bool
) -> dict[str, Side]:
    """Updates/s of the learner with and without its replay, and of the bare computation.

    compiled: measure compiled forms of the computation too.
    """
    config = learning(batch, network, threads, precision)
    learner = filled_learner(config)
    preloaded, _ = learner.replay.sample(batch)

    def update() -> int:
        learner.update()
        return 1

    def compute() -> int:
        learner.trainer.update(preloaded)
        return 1

    in_float32 = Trainer(dataclasses.replace(config, precision="float32"), learner.trainer.device)
    in_float32.load_tensors(learner.trainer.tensors())

    def compute_in_float32() -> int:
        in_float32.update(preloaded)
        return 1

    steps = {"learner": update, "trainer": compute, "plain": plain(preloaded, network)}
    steps["trainer, float32"] = compute_in_float32
    weights = learner.trainer.online.state_dict()
    for channels_last in (False, True):
        layout = "NHWC" if channels_last else "NCHW"
        steps[f"eager {layout}"] = bare(config, preloaded, channels_last, False, weights)
        if compiled and (step := compiling(config, preloaded, channels_last, weights)):
            steps[f"compiled {layout}"] = step
    return {name: steadily(step) for name, step in steps.items()}


def compiling(
    config: Config, batch: TransitionBatch, channels_last: bool, weights: dict[str, Tensor]
) -> Step | None:
    """The compiled form, once it has run; None where it cannot: it needs more than a compiler."""
    step = bare(config, batch, channels_last, True, weights)
    try:
        step()
    except Exception:  # of whatever kind, of a compiler's
        traceback.print_exc()
        return None
    return step


def learning(batch: int, network: str, threads: int, precision: str = "auto") -> Config:
    """The preset `pong` with another batch, network, number of threads or precision."""
    return make_config(
        "pong",
        n_actions=6,
        frames_per_env_step=4,
        actors=1,
        batch_size=batch,
        network=network,
        learner_threads=threads,
        precision=precision,
    )


def filled_learner(config: Config) -> Learner:
    """The learner of a run, with a replay of random play, the same again and again. With the
    network of the policy that ships it has the weights of that: how much there is to multiply
    depends on them, and fresh ones change most."""
    with tempfile.TemporaryDirectory(prefix="volley-bench-") as folder:
        learner = Learner(config, Path(folder), resume=False, started=time.monotonic())
        chunks = played(config, PLAYED)
        while learner.inserted < HELD_TRANSITIONS:
            for chunk in chunks:
                learner.replay.add(chunk)
                learner.inserted += len(chunk)
        if config.network == Config().network:
            load_state_vector(learner.trainer.online, trained_vector())
            learner.trainer.sync_target()
            learner.trainer.average_policy(share=1.0)
        else:
            learner.trainer.standardize(learner.replay.spread_frames(STANDARDIZE_FRAMES))
    return learner


def bare(
    config: Config,
    batch: TransitionBatch,
    channels_last: bool,
    compiled: bool,
    weights: dict[str, Tensor] | None = None,
) -> Step:
    """Forward, backward, target forward and optimizer on one batch, where that is; nothing else.
    weights: the networks' first ones; left out, fresh ones."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = batch.obs.device
    online, target = (
        network_for(config, device.type).to(device=device, memory_format=layout)  # type: ignore[call-overload]
        for _ in range(2)
    )
    for network in (online, target):  # how much they compute depends on it
        if weights:
            network.load_state_dict(weights)
        else:
            network.standardize(batch.obs.flatten(0, 1).cpu())
    target.for_inference().requires_grad_(False)
    obs, next_obs = (x.to(memory_format=layout, copy=True) for x in (batch.obs, batch.next_obs))
    batch = TransitionBatch(
        obs, batch.action, batch.n_step_return, batch.discount, next_obs, batch.weight
    )
    on_gpu = device.type == "cuda"
    optimizer = (
        torch.optim.Adam(online.parameters(), lr=1e-4, fused=True, capturable=True)
        if on_gpu
        else Adam(online.parameters(), learning_rate=1e-4, epsilon=1e-8)  # the same kernel, sooner
    )
    loss_of = torch.compile(td_loss) if compiled else td_loss

    def step() -> int:
        loss, _, _ = loss_of(online, target, batch, config.double, config.loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return 1

    return step


def plain(batch: TransitionBatch, network: str) -> Step:
    """The straightforward eager form."""
    learner = PlainLearner(network)
    obs, next_obs = batch.obs.contiguous(), batch.next_obs.contiguous()  # NCHW in memory too
    columns = obs, batch.action, batch.n_step_return, batch.discount, next_obs

    def step() -> int:
        learner.update(*columns)
        return 1

    return step


# -- rows -----------------------------------------------------------------------------------------


def cases(form: Form) -> list[tuple[int, int]]:
    """(batch, threads)."""
    if not form.full:
        return [(32, 1)]
    return [(batch, threads) for batch in (32, 128) for threads in (1, 2) if threads <= cores()]


def learner_worker(
    batch: int, network: str, threads: int, precision: str = "auto", compiled: bool = False
) -> Worker:
    """With the environment that `launch.py` gives its learner."""
    return Worker(
        "benchmarks.learning:learner_sides",
        environment=learner_environment(learning(batch, network, threads)),
        batch=batch,
        network=network,
        threads=threads,
        precision=precision,
        compiled=compiled,
    )


def updates(form: Form, peers: Peers) -> Iterator[Row]:
    """Row 7: updates with replay against the bare computation, and that against the plain form."""
    network = Config().network
    compiled = form.full and shutil.which("g++") is not None
    for batch, threads in cases(form):
        with learner_worker(batch, network, threads, compiled=compiled) as worker:
            sides = dict(worker.sides)
            names = ("learner", "trainer", "trainer, float32", "plain")
            ours = {name: sides.pop(name) for name in names}
            tried = any(name.startswith("compiled") for name in sides)
            best = fastest(sides, form.seconds)
            seen = alternate({**ours, "bare": sides[best]}, form.rounds, form.seconds)
        case, here = f"batch {batch}, {threads} thread(s)", precision_here()
        bare = f"bare computation ({best}{'' if tried else '; compiled not tried'})"
        what = f"updates with replay, {case}, {here}"
        yield Row(7, what, UPDATES, bare, Goal(0.95), seen["learner"], seen["bare"])
        plain = "plain eager form, float32"
        trainers = {here: seen["trainer"], "float32": seen["trainer, float32"]}
        for precision, figures in trainers.items():
            what = f"update of a preloaded batch, {case}, {precision}"
            yield Row(7, what, UPDATES, plain, Goal(1.25), figures, seen["plain"])


def peers_updates(form: Form, peers: Peers) -> Iterator[Row]:
    """Row 8: updates with replay against the gradient steps of others, on equal networks."""
    network = "nature"
    others = {
        "Stable-Baselines3 DQN `train()`": "stable_baselines:learner_sides",
        "CleanRL-style DQN": "plain:learner_sides",
    }
    tried = [(batch, threads, precision_here()) for batch, threads in cases(form)]
    if form.full and multiplies_bfloat16():
        tried.append((32, 1, "float32"))  # in which the others calculate
    for batch, threads, precision in tried:
        what = f"updates with replay, {network}, batch {batch}, {threads} thread(s), {precision}"
        settings = {
            "environment": {"OMP_NUM_THREADS": str(threads)},
            "network": network,
            "batch": batch,
        }
        starts = {name: partial(peers.start, maker, **settings) for name, maker in others.items()}
        with learner_worker(batch, network, threads, precision) as ours:
            row = Row(8, what, UPDATES, "", Goal(1.5))
            yield from versus(row, ours.sides["learner"], starts, form)
