"""The networks: sizes from the papers, scaling, and the state vector."""

import numpy as np
import pytest
import torch

from common.network import DQN, load_state_vector, network_for, state_size, state_vector
from tests.builders import config


def parameters(network: DQN) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_nature_network_has_the_published_size_for_6_actions() -> None:
    assert parameters(DQN((4, 84, 84), 6)) == 1_687_206


def test_the_convolutions_output_size_follows_from_the_input() -> None:
    assert DQN((4, 110, 84), 6)(torch.zeros(2, 4, 110, 84, dtype=torch.uint8)).shape == (2, 6)


@pytest.mark.parametrize("network", ["nature", "nips"])
@pytest.mark.parametrize("dueling", [False, True])
def test_uint8_observations_become_action_values(network: str, dueling: bool) -> None:
    q = DQN((4, 84, 84), 5, network, dueling)(torch.zeros(3, 4, 84, 84, dtype=torch.uint8))
    assert q.shape == (3, 5)
    assert q.dtype == torch.float32


def test_the_dueling_head_is_value_plus_centred_advantage() -> None:
    network = DQN((4, 84, 84), 5, "nips", dueling=True)
    obs = torch.randint(0, 256, (7, 4, 84, 84), dtype=torch.uint8)
    features = network.convolve(obs)
    value, advantage = network.value(features), network.advantage(features)
    expected = value + advantage - advantage.mean(dim=1, keepdim=True)
    assert torch.allclose(network(obs), expected, atol=1e-5)
    assert advantage.std(dim=1).min() > 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_pixels_are_convolved_as_they_lie(layout: torch.memory_format, bfloat16: bool) -> None:
    network = DQN((4, 84, 84), 5, "nips", bfloat16=bfloat16).to(memory_format=layout)  # type: ignore[call-overload]
    seen: list[torch.Tensor] = []
    network.rest.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    network(obs.contiguous(memory_format=layout))
    assert seen[0].is_contiguous(memory_format=layout)


def plainly(network: DQN, obs: torch.Tensor) -> torch.Tensor:
    """Scale first, then convolve: what folding must equal."""
    x = (obs.float() - network.background) / network.pixel_scale
    q: torch.Tensor = network.advantage(network.rest(network.first(x)))
    return q


def test_pixels_are_divided_by_255_until_standardized() -> None:
    network = DQN((4, 84, 84), 6)
    assert (network.background == 0).all()
    assert network.pixel_scale == 255


def test_scaling_folded_into_the_first_convolution_changes_neither_values_nor_gradients() -> None:
    network = DQN((4, 84, 84), 6)
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    for _ in range(2):
        gradients = []
        for q in (network(obs), plainly(network, obs)):
            network.zero_grad()
            q.pow(2).sum().backward()  # type: ignore[no-untyped-call]
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        assert torch.allclose(network(obs), plainly(network, obs), rtol=1e-4, atol=1e-4)
        for folded, plain in zip(*gradients, strict=True):
            assert torch.allclose(folded, plain, rtol=1e-3, atol=1e-3 * plain.abs().max())
        network.standardize(torch.randint(80, 95, (100, 84, 84), dtype=torch.uint8))


def gradients_of(network: DQN, obs: torch.Tensor) -> torch.Tensor:
    network.zero_grad()
    network(obs).pow(2).sum().backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("dueling", [False, True])
def test_factors_rounded_to_bfloat16_change_values_and_gradients_by_no_more_than_rounding(
    dueling: bool,
) -> None:
    exact, rounded = (DQN((4, 84, 84), 6, "nips", dueling, bf16) for bf16 in (False, True))
    rounded.load_state_dict(exact.state_dict())
    frames = torch.randint(80, 95, (50, 84, 84), dtype=torch.uint8)
    frames[:, 20:60, 30:34] += 100
    obs = torch.stack([frames[i : i + 4] for i in range(32)])
    for network in (exact, rounded):
        network.standardize(frames)
    q, q_rounded = exact(obs), rounded(obs)
    assert q_rounded.dtype == torch.float32
    assert 0 < (q_rounded - q).abs().max() < 2**-7 * q.abs().max()  # bfloat16 holds 8 bits
    gradients, rounded_gradients = gradients_of(exact, obs), gradients_of(rounded, obs)
    assert rounded_gradients.dtype == torch.float32
    assert torch.cosine_similarity(gradients, rounded_gradients, dim=0) > 0.999


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_network_for_playing_gives_the_very_values_of_the_one_that_learns(
    dueling: bool, bfloat16: bool
) -> None:
    learns, plays = (DQN((4, 84, 84), 6, "nips", dueling, bfloat16) for _ in range(2))
    learns.standardize(torch.randint(0, 256, (50, 84, 84), dtype=torch.uint8))
    load_state_vector(plays.for_inference(), state_vector(learns))
    obs = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)  # all of it differs
    obs = obs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(learns(obs), plays(obs))


@pytest.mark.parametrize(
    ("precision", "device", "native", "bfloat16"),
    [
        ("auto", "cpu", True, True),
        ("auto", "cpu", False, False),
        ("auto", "cuda", True, False),
        ("float32", "cpu", True, False),
        ("bfloat16", "cpu", False, True),
        ("bfloat16", "cuda", False, True),
    ],
)
def test_precision_follows_what_computes_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, native: bool, bfloat16: bool
) -> None:
    monkeypatch.setattr("common.network.multiplies_bfloat16", lambda: native)
    settings = config(precision=precision, cuda=True)  # with a GPU, actors are on the CPU still
    assert network_for(settings, device).in_bfloat16 is bfloat16


def test_standardizing_takes_each_pixels_median_and_leaves_a_root_mean_square_of_1() -> None:
    network = DQN((4, 84, 84), 6)
    frames = torch.randint(0, 256, (401, 84, 84), dtype=torch.uint8)
    network.standardize(frames)
    assert np.array_equal(network.background.numpy(), np.median(frames.numpy(), axis=0))
    x = (frames.float() - network.background) / network.pixel_scale
    assert x.pow(2).mean().sqrt().item() == pytest.approx(1, abs=1e-3)


def test_what_most_frames_show_is_zero_once_standardized_whatever_else_they_show() -> None:
    network = DQN((4, 84, 84), 6)
    frames = torch.full((100, 84, 84), 87, dtype=torch.uint8)
    frames[:40] = 236
    network.standardize(frames)
    assert (network.background == 87).all()


def test_a_still_picture_does_not_blow_up() -> None:
    network = DQN((4, 84, 84), 6)
    network.standardize(torch.full((10, 84, 84), 87, dtype=torch.uint8))
    assert network.pixel_scale == 1


def test_the_state_vector_round_trips_and_carries_the_scaling() -> None:
    a, b = DQN((4, 84, 84), 6, "nips"), DQN((4, 84, 84), 6, "nips")
    a.standardize(torch.randint(0, 256, (50, 84, 84), dtype=torch.uint8))
    load_state_vector(b, state_vector(a))
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_a_state_vector_of_another_network_is_refused() -> None:
    network = DQN((4, 84, 84), 6, "nips")
    with pytest.raises(ValueError, match="expected"):
        load_state_vector(network, np.zeros(state_size(network) + 1, np.float32))
