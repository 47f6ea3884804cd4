"""Rows 14 to 16: learning on a GPU, against what the GPU could do."""

import contextlib
import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from benchmarks import watched
from benchmarks.learning import bare, filled_learner, learning
from benchmarks.measure import (
    AHEAD,
    ENV_STEPS,
    UPDATES,
    Form,
    Goal,
    NotMeasured,
    Row,
    Side,
    alternate,
    fastest,
    steadily,
)
from benchmarks.peers.environment import Peers
from benchmarks.system import Run, ours
from benchmarks.worker import Worker, versus
from common.config import FRAME_SHAPE, GAMES_EACH, STACK, Config
from common.machine import cores
from launch import learner_environment
from learner.captured import Launch, as_cuda_graph
from learner.dqn import Trainer
from learner.replay import TransitionBatch

Case = tuple[int, str]  # batch, network
CASES: list[Case] = [*((batch, Config().network) for batch in (32, 256, 512)), (32, "nature")]
FAST_DQN: Case = (32, "nature")
FAST_DQN_UPDATES = 386.0  # per second, published, on a GTX 1080
LAYOUTS = {"NHWC": True, "NCHW": False}  # channels last?
# Updates between two looks at the clock. The GPU is waited for before each, and then waits for the
# learner to draw its next batch, as it never does in a run.
BURST = 250

# What Pong is played with on a GPU (tuning/gpu_run.py says why), and a smaller replay, which is
# written at the end of each run.
ON_GPU = (
    *("--cuda", "--replay-device", "cuda", "--learner-threads", "1", "--batch-size", "128"),
    *("--envs-per-actor", str(GAMES_EACH)),  # an actor alone too: it is what many are compared to
    *("--samples-per-insert", "1.6", "--publish-period-updates", "80"),
    *("--replay-transitions", "100000", "--learning-starts-transitions", "5000"),
)
# As pong-frugal and atari: what 15 actors play is enough for some 1,250 updates/s of 128.
ALWAYS_ENOUGH = ("--samples-per-insert", "8")
ACTORS = (4, 8, 12, 15)
TOP = 20_000.0  # env steps/s
WATCH_SECONDS = 240.0  # start-up included
FEWEST_EVENTS = 30  # on the GPU, of an update, in a record that can be whole
BUSIEST = 1.1  # of an update's time: that much a profiler may add to short kernels


def require_gpu() -> None:
    if not torch.cuda.is_available():
        raise NotMeasured("needs an NVIDIA GPU")


@functools.cache
def on_the_gpu() -> str:
    """How rows call it: their reader must know where an update is no captured graph here."""
    device = torch.device("cuda", torch.cuda.current_device())
    with contextlib.redirect_stdout(sys.stderr):  # where it says why not
        captured = Trainer(settings(*CASES[0], "cuda"), device).is_captured
    return "on the GPU" if captured else "on the GPU (kernel by kernel)"


# -- sides ----------------------------------------------------------------------------------------


def learner_sides(cases: list[Case], device: str = "cuda") -> dict[str, Side]:
    """Updates/s of learners whose replay, of Pong, is on the device."""
    return {
        named(*case): in_bursts(filled_learner(settings(*case, device)).update, device)
        for case in cases
    }


def bare_sides(cases: list[Case], device: str = "cuda") -> dict[str, Side]:
    """Updates/s of the bare computation on one batch: eager and, on a GPU, as a captured graph."""
    sides = {}
    for case in cases:
        config, batch = settings(*case, device), noise(case[0], device)
        for layout, channels_last in LAYOUTS.items():
            steps: dict[str, Launch] = {"eager": bare(config, batch, channels_last, False)}
            if device == "cuda":
                try:
                    steps["graph"] = as_cuda_graph(bare(config, batch, channels_last, False))
                except RuntimeError:  # the others can be measured all the same
                    traceback.print_exc()
            for form, step in steps.items():
                sides[f"{form} {layout}, {named(*case)}"] = in_bursts(step, device)
    return sides


def compiled_sides(case: Case, device: str = "cuda") -> dict[str, Side]:
    """The same, compiled; it is compiled, or fails to be, before this returns."""
    step = bare(settings(*case, device), noise(case[0], device), True, True)
    step()
    return {"compiled": in_bursts(step, device)}


def named(batch: int, network: str) -> str:
    return f"{network}, batch {batch}"


def settings(batch: int, network: str, device: str) -> Config:
    config = learning(batch, network, threads=1)
    return (
        dataclasses.replace(config, cuda=True, replay_device="cuda") if device == "cuda" else config
    )


def noise(batch: int, device: str) -> TransitionBatch:
    """A batch of random pictures: how long an update takes does not depend on what they show."""
    rng = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randint(
        256, (2, batch, STACK, *FRAME_SHAPE), generator=rng, dtype=torch.uint8
    )
    return TransitionBatch(
        obs,
        action=torch.randint(6, (batch,), generator=rng),
        n_step_return=torch.randn(batch, generator=rng),
        discount=torch.full((batch,), 0.95),
        next_obs=next_obs,
        weight=torch.ones(batch),
    ).to(torch.device(device))


def in_bursts(update: Callable[[], object], device: str) -> Side:
    """Updates/s, the work on the GPU done."""

    def burst() -> int:
        for _ in range(BURST):
            update()
        if device == "cuda":
            torch.cuda.synchronize()
        return BURST

    return steadily(burst)


# -- rows -----------------------------------------------------------------------------------------


def updates(form: Form, peers: Peers) -> Iterator[Row]:
    """Row 14: updates with replay on the GPU against the CUDA graph of the computation alone."""
    require_gpu()
    environment = learner_environment(settings(*CASES[0], "cuda"))
    worker = partial(Worker, environment=environment)
    with worker("benchmarks.gpu:learner_sides", cases=CASES) as learner:
        with worker("benchmarks.gpu:bare_sides", cases=CASES) as others:
            for case in CASES:
                yield from against_bare(case, learner.sides, others.sides, form)
        for case in CASES:  # last: it takes its time, and may fail
            row = Row(14, what(case), UPDATES, "")
            compiled = partial(worker, "benchmarks.gpu:compiled_sides", case=case)
            yield from versus(
                row, learner.sides[named(*case)], {"compiled computation": compiled}, form
            )


def what(case: Case) -> str:
    return f"updates with replay {on_the_gpu()}, {named(*case)}"


def against_bare(
    case: Case, learner: Mapping[str, Side], others: Mapping[str, Side], form: Form
) -> list[Row]:
    """The learner against either form of the computation, each in its faster layout."""
    best = {}
    for name in ("graph", "eager"):
        keys = {f"{name} {layout}": f"{name} {layout}, {named(*case)}" for layout in LAYOUTS}
        layouts = {short: others[key] for short, key in keys.items() if key in others}
        if layouts:
            best[name] = fastest(layouts, form.seconds / 4)
    sides = {"ours": learner[named(*case)]}
    sides |= {name: others[f"{faster}, {named(*case)}"] for name, faster in best.items()}
    seen = alternate(sides, form.rounds, form.seconds)
    row = Row(14, what(case), UPDATES, "", figures=seen["ours"])
    graph = f"bare computation, captured CUDA {best.get('graph', 'graph')}"
    rows = [
        dataclasses.replace(row, against=graph, goal=Goal(0.95), references=seen["graph"])
        if "graph" in best
        else Row(14, what(case), UPDATES, graph, note="PyTorch could not capture it"),
        dataclasses.replace(
            row, against=f"bare computation, {best['eager']}", references=seen["eager"]
        ),
    ]
    if case == FAST_DQN:
        published = [FAST_DQN_UPDATES] * form.rounds
        rows.append(
            dataclasses.replace(
                row, against="published for fast-dqn, GTX 1080", references=published
            )
        )
    return rows


def env_steps(form: Form, peers: Peers) -> list[Row]:
    """Row 15: env steps of several actors, while learning, against as many times those of one."""
    require_gpu()
    counts = [actors for actors in ACTORS if actors < cores()]
    if not counts:
        raise NotMeasured(f"{min(ACTORS)} actors and a learner need {min(ACTORS) + 1} cores")
    sides = {actors: ours(*ON_GPU, "--actors", str(actors)) for actors in (1, *counts)}
    rounds, seconds = (5, 30.0) if form.full else (1, 8 * form.seconds)
    seen = alternate(sides, rounds, seconds)
    steps = {actors: [f[ENV_STEPS] for f in figures] for actors, figures in seen.items()}
    return against_one(steps)


def against_one(steps: Mapping[int, list[float]]) -> list[Row]:
    """Rows of env steps/s by number of actors, one among them."""

    def what(actors: int) -> str:
        return f"env steps while learning {on_the_gpu()}, {actors} actors"

    rows = [
        Row(
            15,
            what(actors),
            ENV_STEPS,
            f"{actors} times one actor",
            Goal(0.95),
            figures,
            [actors * figure for figure in steps[1]],
        )
        for actors, figures in steps.items()
        if actors > 1
    ]
    top = max(steps)
    absolute = [TOP] * len(steps[top])
    return [*rows, Row(15, what(top), ENV_STEPS, "absolute", AHEAD, steps[top], absolute)]


def idle(form: Form, peers: Peers) -> list[Row]:
    """Row 16: time of an update in which the GPU does nothing though data suffices."""
    require_gpu()
    actors = str(min(max(ACTORS), max(1, cores() - 1)))
    flags = (*ON_GPU, *ALWAYS_ENOUGH, "--actors", actors)
    wall, still = [], []
    for _ in range(5 if form.full else 1):
        with Run(*flags, door=("-m", "benchmarks.watched")) as run:
            told = run.until(partial(watched.read, run.run_dir), WATCH_SECONDS)
        assert told
        if told.events < FEWEST_EVENTS:
            raise NotMeasured(
                f"PyTorch's profiler saw {told.events:g} events per update on the GPU"
            )
        if told.busy_seconds > BUSIEST * told.wall_seconds:
            raise NotMeasured(
                f"PyTorch's profiler saw the GPU work for {1000 * told.busy_seconds:.3g} ms in an "
                f"update that takes {1000 * told.wall_seconds:.3g}"
            )
        wall.append(1000 * told.wall_seconds)
        still.append(1000 * max(0.0, told.wall_seconds - told.busy_seconds))
    what = f"idle {on_the_gpu()} while data suffices, batch 128, {actors} actors"
    return [Row(16, what, "ms per update", "the whole update", Goal(0.05, True), still, wall)]
