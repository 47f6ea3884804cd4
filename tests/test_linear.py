"""The fully connected layer: PyTorch's, by either library."""

import pytest
import torch
from torch import nn

from common.linear import Linear, onednn_is_wider
from common.network import DQN

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this build of PyTorch has no oneDNN",
)


def twins(monkeypatch: pytest.MonkeyPatch, by_onednn: bool) -> tuple[Linear, nn.Linear]:
    """Ours and, in float64, PyTorch's with the same weights."""
    monkeypatch.setattr("common.linear.onednn_is_wider", lambda: by_onednn)
    ours, exact = Linear(300, 70), nn.Linear(300, 70, dtype=torch.float64)
    exact.load_state_dict(ours.state_dict())
    return ours, exact


either_library = pytest.mark.parametrize(
    "by_onednn", [pytest.param(True, marks=needs_onednn), False]
)


@either_library
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_values_and_gradients_are_those_of_a_linear_layer(
    monkeypatch: pytest.MonkeyPatch, by_onednn: bool, batch: int
) -> None:
    ours, exact = twins(monkeypatch, by_onednn)
    x = torch.randn(batch, 300, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    y, expected = ours(x), exact(wide)
    weights = torch.randn(batch, 70)
    (y * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    pairs = {"y": (y, expected), "x": (x.grad, wide.grad)}
    for name, parameter in ours.named_parameters():
        pairs[name] = parameter.grad, exact.get_parameter(name).grad
    strides = {name: parameter.stride() for name, parameter in ours.named_parameters()}
    for name, (found, oracle) in pairs.items():
        assert found is not None
        assert oracle is not None
        assert found.dtype == torch.float32
        assert found.stride() == strides[name] if name in strides else found.is_contiguous(), name
        assert torch.allclose(found.double(), oracle, rtol=1e-5, atol=1e-5), name


def multiplies_there(module: nn.Module, x: torch.Tensor) -> bool:
    """Does it compute any product of these there?"""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x)
    return any("_linear_pointwise" in event.key for event in profile.key_averages())


@needs_onednn
def test_where_it_is_wider_onednn_multiplies_float32_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(4, 300)
    ours, _ = twins(monkeypatch, by_onednn=True)
    assert multiplies_there(ours, x)
    assert multiplies_there(
        DQN((4, 84, 84), 6, "nips"), torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    )
    assert not multiplies_there(ours.to(torch.bfloat16), x.to(torch.bfloat16))
    ours, _ = twins(monkeypatch, by_onednn=False)
    assert not multiplies_there(ours, x)


@needs_onednn
def test_it_is_wider_where_pytorch_uses_avx_512() -> None:
    onednn_is_wider.cache_clear()
    assert onednn_is_wider() == (torch.backends.cpu.get_cpu_capability() == "AVX512")
