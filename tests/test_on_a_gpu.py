"""What only a GPU can show. `python -m tuning.gpu_run test` runs this file where there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import FEWEST_EVENTS, LAYOUTS, noise, settings
from benchmarks.learning import bare
from benchmarks.watched import Trace
from common.config import Config
from common.messages import Spec
from learner.captured import as_cuda_graph
from learner.dqn import Trainer
from learner.learner import Learner
from learner.replay import Replay, TransitionBatch, UniformSampler
from tests.builders import chunk_of, config
from tests.test_learner import fill

GPU = torch.device("cuda", 0)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam makes a whole step of a gradient that is nothing but rounding: none may depend on the
    order in which a kernel happens to add up."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def replay_of(small: Config, device: torch.device, chunks: int) -> Replay:
    replay = Replay(small, UniformSampler(np.random.default_rng(0)), device)
    for i in range(chunks):
        replay.add(chunk_of(Spec.of(small), 16, 16 * i))
    return replay


def assert_equal(one: TransitionBatch, other: TransitionBatch) -> None:
    for name in one.__slots__:
        assert torch.equal(getattr(one, name).cpu(), getattr(other, name).cpu()), name


def assert_close(one: Trainer, other: Trainer) -> None:
    theirs = other.tensors()
    for name, tensor in one.tensors().items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4), name


def test_a_replay_there_draws_the_batches_of_one_in_main_memory() -> None:
    small = config(replay_transitions=64, learning_starts_transitions=40, batch_size=4)
    (one, ids), (other, other_ids) = (  # of 9 chunks the last 4 are held
        replay_of(small, device, 9).sample(32) for device in (torch.device("cpu"), GPU)
    )
    assert (ids == other_ids).all()
    assert_equal(one, other)


def test_captured_updates_are_the_eager_ones() -> None:
    # A step size that float32, in which a graph is given it, holds exactly.
    small = config(cuda=True, batch_size=8, precision="float32", learning_rate=2**-11)
    in_one, eager = (Trainer(small, GPU) for _ in range(2))
    eager.load_tensors(in_one.tensors())
    assert in_one._captured
    eager._captured = None
    replay = replay_of(small, torch.device("cpu"), 5)
    begun: list[Callable[[], Any]] = []
    eager_ones = []
    for _ in range(5):  # launched one after the other, each read only when the next is under way
        batch = replay.sample(8)[0].to(GPU)
        assert batch.next_obs.is_contiguous(memory_format=torch.channels_last)
        begun.append(in_one.begin(batch))
        eager_ones.append(eager.update(batch))
        if len(begun) > 1:
            stats, td_error = begun[-2]()
            expected, errors = eager_ones[-2]
            assert stats.loss == pytest.approx(expected.loss, rel=1e-3)
            assert torch.allclose(td_error, errors.cpu(), rtol=1e-3, atol=1e-3)
    assert_close(in_one, eager)


def test_a_learner_there_learns_is_kept_and_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    small = config(
        cuda=True,
        replay_device="cuda",
        batch_size=8,
        prioritized=True,
        replay_transitions=512,
        publish_period_updates=2,
    )
    (tmp_path / "config.json").write_text(small.to_json())
    first = Learner(small, tmp_path, resume=False, started=0.0)
    fill(first, 40)  # the ring turns over, and the input's scaling is measured
    before = first.weights().vector.copy()
    for _ in range(5):
        first.update()
    assert not np.array_equal(first.weights().vector, before)
    first.save_policy()
    first.save_now()
    second = Learner(small, tmp_path, resume=True, started=0.0)
    assert second.trainer.is_captured
    assert (second.updates, second.inserted) == (5, first.inserted)
    (one, ids), (other, other_ids) = first.replay.sample(8), second.replay.sample(8)
    assert (ids == other_ids).all()
    assert_equal(one, other)
    for learner in (first, second):
        fill(learner, 3)
        for _ in range(3):
            learner.update()
        learner.finish_update()
        learner.records.metrics.close()
    assert_close(first.trainer, second.trainer)


@pytest.mark.parametrize("channels_last", LAYOUTS.values(), ids=LAYOUTS)
def test_the_computation_alone_can_be_captured(channels_last: bool) -> None:
    case = settings(32, "nips", "cuda")
    launch = as_cuda_graph(bare(case, noise(32, "cuda"), channels_last, False))
    launch()
    torch.cuda.synchronize()


def test_the_profiler_sees_what_captured_updates_do() -> None:
    trainer, batch = Trainer(settings(32, "nips", "cuda"), GPU), noise(32, "cuda")
    trainer.update(batch)
    trace = Trace()
    for _ in range(20):
        trainer.update(batch)
    torch.cuda.synchronize()
    busy_seconds, events = trace.end()
    assert busy_seconds > 0 and events >= 20 * FEWEST_EVENTS
