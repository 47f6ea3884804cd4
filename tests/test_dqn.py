"""The loss against numbers worked out by hand; the update against its definition."""

import contextlib
import dataclasses
import gc
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from learner.adam import Adam
from learner.captured import WARM_UP_CALLS, Launch, as_cuda_graph
from learner.dqn import NotFinite, Trainer, td_loss
from learner.replay import TransitionBatch
from tests.builders import config
from tests.gpu import as_on_a_gpu


class Table(nn.Module):
    """Q-values by the first pixel of the first frame."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.rows[obs[:, 0, 0, 0].long()]


def states(*pixels: int) -> torch.Tensor:
    obs = torch.zeros(len(pixels), 4, 84, 84, dtype=torch.uint8)
    obs[:, 0, 0, 0] = torch.tensor(pixels)
    return obs


# online Q: state 0 -> [1, 2], 1 -> [3, 0];  target Q: state 0 -> [10, 20], 1 -> [30, 40]
ONLINE, TARGET = [[1.0, 2.0], [3.0, 0.0]], [[10.0, 20.0], [30.0, 40.0]]
BATCH = TransitionBatch(
    obs=states(0, 1, 0),
    action=torch.tensor([0, 1, 1]),
    n_step_return=torch.tensor([0.5, -1.0, 2.0]),
    discount=torch.tensor([0.9, 0.0, 0.81]),  # one step, terminal, two steps (or truncated)
    next_obs=states(1, 1, 1),
    weight=torch.ones(3),
)


@pytest.mark.parametrize(
    ("double", "td_error"),
    [
        # y = r + discount * max target = 0.5 + 0.9 * 40, -1, 2 + 0.81 * 40; q = 1, 0, 2
        (False, [35.5, -1.0, 32.4]),
        # the online network prefers action 0 in state 1: target value 30
        (True, [26.5, -1.0, 24.3]),
    ],
)
def test_the_td_error_is_that_of_the_definition(double: bool, td_error: list[float]) -> None:
    loss, found, q = td_loss(Table(ONLINE), Table(TARGET), BATCH, double, "mse")
    assert found.tolist() == pytest.approx(td_error, rel=1e-6)
    assert q.tolist() == [1.0, 0.0, 2.0]
    assert loss.item() == pytest.approx(np.mean(np.square(td_error)), rel=1e-6)


def test_huber_is_linear_beyond_one_and_weights_scale_it() -> None:
    batch = dataclasses.replace(BATCH, weight=torch.tensor([1.0, 0.5, 0.25]))
    loss, _, _ = td_loss(Table(ONLINE), Table(TARGET), batch, False, "huber")
    assert loss.item() == pytest.approx((35.0 + 0.5 * 0.5 + 0.25 * 31.9) / 3, rel=1e-6)


def test_no_gradient_reaches_the_target_and_only_taken_actions_move() -> None:
    online, target = Table(ONLINE), Table(TARGET)
    loss, _, _ = td_loss(online, target, BATCH, True, "mse")
    loss.backward()  # type: ignore[no-untyped-call]
    assert target.rows.grad is None
    assert online.rows.grad is not None
    assert online.rows.grad[1, 0] == 0


def random_batch(size: int = 8) -> TransitionBatch:
    rng = torch.Generator().manual_seed(0)
    return TransitionBatch(
        obs=torch.randint(0, 256, (size, 4, 84, 84), generator=rng, dtype=torch.uint8),
        action=torch.randint(0, 3, (size,), generator=rng),
        n_step_return=torch.randn(size, generator=rng),
        discount=torch.full((size,), 0.97),
        next_obs=torch.randint(0, 256, (size, 4, 84, 84), generator=rng, dtype=torch.uint8),
        weight=torch.ones(size),
    )


def test_the_target_moves_only_at_a_sync() -> None:
    trainer = Trainer(config(target_sync_period_updates=3), torch.device("cpu"))
    before = trainer.target.state_dict()["first.weight"].clone()
    for update in range(1, 7):
        trainer.update(random_batch())
        now = trainer.target.state_dict()["first.weight"]
        same_as_online = torch.equal(now, trainer.online.state_dict()["first.weight"])
        assert same_as_online == (update % 3 == 0)
        if update < 3:
            assert torch.equal(now, before)


def test_the_gradient_is_clipped_before_the_step() -> None:
    free, clipped = (
        Trainer(config(max_grad_norm=norm), torch.device("cpu")) for norm in (0.0, 1e-3)
    )
    clipped.online.load_state_dict(free.online.state_dict())
    clipped.sync_target()
    free.sync_target()
    norms = [t.update(random_batch())[0].grad_norm for t in (free, clipped)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # reported before clipping
    total = sum(
        float(p.grad.pow(2).sum()) for p in clipped.online.parameters() if p.grad is not None
    )
    assert total**0.5 == pytest.approx(1e-3, rel=1e-3)


def test_a_gradient_below_the_limit_is_left_alone() -> None:
    free, limited = (
        Trainer(config(max_grad_norm=norm), torch.device("cpu")) for norm in (0.0, 1e9)
    )
    limited.load_tensors(free.tensors())
    before = free.online.first.weight.detach().clone()
    for trainer in (free, limited):
        trainer.update(random_batch())
    assert torch.equal(free.online.first.weight, limited.online.first.weight)
    assert not torch.equal(free.online.first.weight, before)
    assert torch.isfinite(free.online.first.weight).all()


def test_what_a_checkpoint_is_given_does_not_move_with_training() -> None:
    trainer = Trainer(config(policy_average_updates=10), torch.device("cpu"))
    trainer.update(random_batch())
    given = trainer.tensors()
    kept = {name: tensor.clone() for name, tensor in given.items()}
    trainer.update(random_batch())
    trainer.average_policy()
    trainer.sync_target()
    for name, tensor in given.items():
        assert torch.equal(tensor, kept[name]), name


@pytest.mark.parametrize("limit", [0.0, 2**-10, 1e9])
def test_the_step_that_a_gpu_captures_is_the_eager_one_to_the_bit(limit: float) -> None:
    settings = config(max_grad_norm=limit, learning_rate=2**-11, batch_size=8)
    eager, other = (Trainer(settings, torch.device("cpu")) for _ in range(2))
    other.load_tensors(eager.tensors())
    as_on_a_gpu(other)
    assert not other.is_dead  # on a batch without a single pixel
    for name, tensor in eager.tensors().items():  # to capture it is not to train
        assert torch.equal(tensor, other.tensors()[name]), name
    for update in range(4):
        for trainer in (eager, other):
            trainer.adam.learning_rate = 2.0 ** -(11 + update)
        (stats, td_error), (others, other_td_error) = (
            trainer.update(random_batch()) for trainer in (eager, other)
        )
        assert stats == others
        assert torch.equal(td_error, other_td_error)
    for name, tensor in eager.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_a_captured_step_that_is_not_finite_moves_nothing() -> None:
    trainer = Trainer(config(batch_size=8), torch.device("cpu"))
    as_on_a_gpu(trainer)
    before = {name: t for name, t in trainer.tensors().items() if not name.endswith("step")}
    batch = random_batch()
    batch.n_step_return[0] = float("nan")
    with pytest.raises(NotFinite, match="loss is nan at update 1"):
        trainer.update(batch)
    for name, tensor in before.items():
        assert torch.equal(tensor, trainer.tensors()[name]), name


def test_a_device_that_cannot_capture_leaves_the_networks_as_they_were() -> None:
    trainer = Trainer(config(batch_size=8), torch.device("cpu"))
    before = trainer.tensors()

    def fails(step: Launch) -> Launch:
        step()
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        as_on_a_gpu(trainer, fails)
    for name, tensor in before.items():
        assert torch.equal(tensor, trainer.tensors()[name]), name


def test_nothing_from_before_a_capture_takes_part_in_its_backward_pass() -> None:
    trainer = Trainer(config(batch_size=8), torch.device("cpu"))
    held: list[bool] = []

    def capture(step: Launch) -> Launch:
        held.extend(map(has_an_accumulator, trainer.online.parameters()))
        return step

    as_on_a_gpu(trainer, capture)
    assert held and not any(held)
    parameter = next(trainer.online.parameters())
    history = parameter.clone()
    assert has_an_accumulator(parameter) and history.grad_fn


def has_an_accumulator(parameter: nn.Parameter) -> bool:
    """Does anything hold on to the node that adds up this parameter's gradient? It knows the stream
    on which it was made: in a capture of another stream CUDA refuses it."""
    torch.autograd.graph.get_gradient_edge(parameter).node.metadata["seen"] = True
    return "seen" in torch.autograd.graph.get_gradient_edge(parameter).node.metadata


def test_a_device_that_cannot_capture_is_told_by_its_first_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(config(), torch.device("cpu"))
    trainer.device = torch.device("cuda")

    def fails(*_: object) -> None:
        try:
            raise RuntimeError("an operation that cannot be captured")
        finally:
            raise RuntimeError("operation failed due to a previous error")

    monkeypatch.setattr("learner.dqn.CapturedStep", fails)
    assert trainer._capture() is None and not trainer.is_captured
    said = capsys.readouterr().out
    assert "kernel by kernel" in said and "an operation that cannot be captured" in said


def test_a_graph_is_captured_after_a_warm_up_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            events.append("wait")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextlib.contextmanager
    def inside(name: str) -> Iterator[None]:
        events.append(name)
        yield
        events.append(f"end of {name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: inside("side stream"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **options: inside("capture"))
    monkeypatch.setattr(gc, "collect", lambda: events.append("garbage"))

    def step() -> None:
        events.append("step" if gc.isenabled() else "step, no garbage collected")

    as_cuda_graph(step)()
    assert gc.isenabled()
    assert events == [
        *("wait", "side stream", *["step"] * WARM_UP_CALLS, "end of side stream", "wait"),
        *("garbage", "capture", "step, no garbage collected", "end of capture", "replay"),
    ]


def test_a_capture_that_fails_gives_the_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, streams = SimpleNamespace(wait_stream=lambda _: None), []

    @contextlib.contextmanager
    def captured(graph: object) -> Iterator[None]:
        yield

    calls = itertools.count(1)

    def step() -> None:
        if next(calls) > WARM_UP_CALLS:
            raise RuntimeError("not in a capture")

    for name, stand_in in (
        ("Stream", lambda: usual),
        ("current_stream", lambda: usual),
        ("stream", lambda _: contextlib.nullcontext()),
        ("CUDAGraph", SimpleNamespace),
        ("graph", captured),
        ("set_stream", streams.append),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with pytest.raises(RuntimeError, match="not in a capture"):
        as_cuda_graph(step)
    assert streams == [usual] and gc.isenabled()


def test_adam_steps_as_pytorchs_own_to_the_bit() -> None:
    networks = [nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last) for _ in range(2)]  # type: ignore[call-overload]
    networks[1].load_state_dict(networks[0].state_dict())
    mine = Adam(networks[0].parameters(), learning_rate=1e-2, epsilon=1e-5)
    theirs = torch.optim.Adam(networks[1].parameters(), lr=1e-2, eps=1e-5, fused=True)
    for _ in range(5):
        obs = torch.randn(2, 4, 6, 6)
        for network, optimizer in zip(networks, (mine, theirs), strict=True):
            optimizer.zero_grad()
            network(obs).square().sum().backward()
            optimizer.step()
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    trainer = Trainer(config(), torch.device("cpu"))
    before = {k: v.clone() for k, v in trainer.online.state_dict().items()}
    batch = random_batch()
    batch.n_step_return[0] = float("nan")
    with pytest.raises(NotFinite, match="loss is nan at update 1"):
        trainer.update(batch)
    assert all(torch.equal(v, before[k]) for k, v in trainer.online.state_dict().items())


@pytest.mark.parametrize("on_a_gpu", [False, True])
@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    monkeypatch: pytest.MonkeyPatch, on_a_gpu: bool, norm: float
) -> None:
    """As where squares of gradients that are still finite have a sum that is not."""
    trainer = Trainer(config(batch_size=8), torch.device("cpu"))
    if on_a_gpu:
        as_on_a_gpu(trainer)
    before = trainer.tensors()
    with monkeypatch.context() as patched:
        patched.setattr("learner.adam.Adam.gradient_norm", lambda _: torch.tensor(norm))
        with pytest.raises(NotFinite, match=f"gradient norm is {norm} at update 1:"):
            trainer.update(random_batch())
    for name, tensor in trainer.tensors().items():
        counted = on_a_gpu and name.endswith(".step")  # that it was tried
        assert torch.equal(tensor, before[name] + counted), name
    assert math.isfinite(trainer.update(random_batch())[0].grad_norm)


def test_weights_that_are_not_finite_are_named_before_they_go_anywhere() -> None:
    trainer = Trainer(config(), torch.device("cpu"))
    with torch.no_grad():
        trainer.online.first.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(NotFinite, match=r"first\.weight"):
        trainer.check_weights()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("silent", ["first", "last hidden"])
def test_a_network_of_which_a_layer_is_silent_is_dead(precision: str, silent: str) -> None:
    trainer = Trainer(config(precision=precision, dueling=False), torch.device("cpu"))
    assert not trainer.is_dead  # nothing is known as yet
    trainer.update(random_batch(1))
    assert not trainer.is_dead
    hidden = trainer.online.advantage[0]
    first = trainer.online.first.weight, trainer.online.first.bias
    weight, bias = first if silent == "first" else (hidden.weight, hidden.bias)
    with torch.no_grad():
        weight.zero_()
        bias.fill_(-1.0)
    trainer.update(random_batch(8))
    assert trainer.is_dead


def test_the_policy_is_an_exponential_average_of_the_online_weights() -> None:
    settings = config(policy_average_updates=100, publish_period_updates=50)
    trainer = Trainer(settings, torch.device("cpu"))
    name = "first.weight"
    expected = trainer.online.state_dict()[name].clone()
    for _ in range(3):
        trainer.update(random_batch())
        trainer.average_policy()
        share = 1 - math.exp(-50 / 100)
        expected += share * (trainer.online.state_dict()[name] - expected)
        assert torch.allclose(trainer.policy.state_dict()[name], expected)
    trainer.standardize(torch.arange(5 * 84 * 84).reshape(5, 84, 84).to(torch.uint8))
    assert torch.equal(trainer.policy.background, trainer.online.background)  # type: ignore[arg-type]


def test_without_an_average_the_policy_is_the_online_network() -> None:
    trainer = Trainer(config(policy_average_updates=0), torch.device("cpu"))
    assert trainer.policy is trainer.online
    trainer.average_policy()


@pytest.mark.parametrize("average", [0, 10])
def test_training_goes_on_bit_for_bit_after_saving_and_loading(average: int) -> None:
    settings = config(policy_average_updates=average)
    straight, resumed = (Trainer(settings, torch.device("cpu")) for _ in range(2))
    for _ in range(3):
        straight.update(random_batch())
        straight.average_policy()
    resumed.load_tensors(straight.tensors())
    resumed.updates = straight.updates
    for trainer in (straight, resumed):
        for _ in range(3):
            trainer.update(random_batch())
            trainer.average_policy()
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_the_update_is_the_one_that_was_configured(double: bool, loss: str) -> None:
    settings = config(double=double, loss=loss, adam_epsilon=1e-3, dueling=False)
    trainer = Trainer(settings, torch.device("cpu"))
    with torch.no_grad():  # online and target prefer different actions
        trainer.online.advantage[-1].bias.copy_(10 * torch.arange(3.0))
        trainer.target.advantage[-1].bias.copy_(-10 * torch.arange(3.0))
    expected, _, _ = td_loss(trainer.online, trainer.target, random_batch(), double, loss)
    assert trainer.update(random_batch())[0].loss == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.adam.epsilon == 1e-3
