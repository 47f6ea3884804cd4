"""The Q-network: uint8 observations in, action values out.

`DQN` is the Nature network (Mnih et al. 2015) or the smaller one of Mnih et al. 2013, with an
optional dueling head (Wang et al. 2016). Input scaling lives inside: a background and one scale
are buffers of the network, so they travel with its weights, checkpoints and exports.

Parameters that learn are float32. What is multiplied may be rounded to bfloat16 first, sums stay
float32 (Kalamkar et al. 2019): an update then takes three quarters to nine tenths of the time on a
CPU that does so natively.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import FRAME_SHAPE, STACK, Config
from common.foreground import Layer, Places, convolve_foreground
from common.frozen import Frozen
from common.hidden import multiply_few
from common.linear import Linear
from common.machine import multiplies_bfloat16

_CONVOLUTIONS = {  # filters, kernel, stride
    "nature": [(32, 8, 4), (64, 4, 2), (64, 3, 1)],
    "nips": [(16, 8, 4), (32, 4, 2)],
}
_HIDDEN_UNITS = {"nature": 512, "nips": 256}


class DQN(nn.Module):
    """Action values of stacked frames.

    input_shape: (STACK, height, width); n_actions: size of the output; bfloat16: round the factors
    of every layer but the last, where libraries multiply them.
    forward: obs [B, *input_shape] u8 -> q [B, n_actions] f32.
    """

    background: Tensor
    pixel_scale: Tensor

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_actions: int,
        network: str = "nature",
        dueling: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.in_bfloat16 = bfloat16
        self._frozen: Frozen | None = None
        self.input_shape, self.n_actions, self.dueling = input_shape, n_actions, dueling
        (channels, kernel, stride), *others = _CONVOLUTIONS[network]
        self.first = nn.Conv2d(input_shape[0], channels, kernel, stride)
        layers: list[nn.Module] = [nn.ReLU()]
        for filters, kernel, stride in others:
            layers += [nn.Conv2d(channels, filters, kernel, stride), nn.ReLU()]
            channels = filters
        self.rest = nn.Sequential(*layers, nn.Flatten())
        # x / 255 until `standardize` measures better; see docs/learning.md.
        self.register_buffer("background", torch.zeros(input_shape[1:]))
        self.register_buffer("pixel_scale", torch.tensor(255.0))
        with torch.no_grad():
            width = self.convolve(torch.zeros(1, *input_shape, dtype=torch.uint8)).shape[1]
        hidden = _HIDDEN_UNITS[network]
        self.advantage = nn.Sequential(
            Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, n_actions)
        )
        if dueling:
            self.value = nn.Sequential(Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, obs: Tensor) -> Tensor:
        advantage, *value = self._streams(obs)
        if not self.dueling:
            return advantage
        return value[0] + advantage - advantage.mean(dim=1, keepdim=True)

    def _streams(self, obs: Tensor) -> list[Tensor]:
        """What the heads give: [B, n_actions] f32 and, dueling, [B, 1] f32. The last layer, small
        as it is, keeps what tells one action from another."""
        hidden = self._hidden(obs)
        return [head[-1](units.float()) for head, units in zip(self._heads, hidden, strict=True)]

    def _hidden(self, obs: Tensor) -> Sequence[Tensor]:
        """What the hidden layer of each head gives: [B, units] f32 or bf16."""
        if self._frozen and by_loops(obs) and (hidden := self._frozen(obs)) is not None:
            return hidden.chunk(len(self._heads), dim=1)
        layers, places = self._hidden_layers, self._places(obs)
        if places and (few := multiply_few(places, layers)):
            return [F.relu(units) for units in few]
        features = self._features(obs, places)
        with self._rounding(obs.device):
            return [F.relu(layer(features)) for layer in layers]

    @property
    def _heads(self) -> list[nn.Sequential]:
        return [self.advantage, self.value] if self.dueling else [self.advantage]

    @property
    def _hidden_layers(self) -> list[Linear]:
        return [layer for head in self._heads if isinstance(layer := head[0], Linear)]

    def convolve(self, obs: Tensor) -> Tensor:
        """[B, STACK, H, W] u8 -> features [B, width] f32 or bf16."""
        return self._features(obs, self._places(obs))

    def _places(self, obs: Tensor) -> Places | None:
        """What the last convolution gives, where that is found by what differs."""
        if not by_loops(obs):
            return None
        layers = [(self._first_weight(), self.first.bias, self.first.stride[0]), *self._others()]
        with self._rounding(obs.device):
            return convolve_foreground(obs, self.background, layers)

    def _features(self, obs: Tensor, places: Places | None) -> Tensor:
        with self._rounding(obs.device):
            if places:
                return places.images().flatten(1)
            pixels, weight = self._less_background(obs), self._first_weight()
            first = F.conv2d(pixels, weight, self.first.bias, self.first.stride)
            features: Tensor = self.rest(first)
            return features

    def _first_weight(self) -> Tensor:
        """Divided by the scale: these are fewer than the pixels."""
        return self.first.weight / self.pixel_scale

    def _less_background(self, obs: Tensor) -> Tensor:
        """[B, STACK, H, W] u8 -> the same f32 or bf16. What is left are small whole numbers, exact
        in every type here."""
        exact, factor = torch.float32, torch.float32
        if self.in_bfloat16:
            exact, factor = torch.int16, torch.bfloat16
        channels_last = obs.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        background = self.background.to(exact).expand(1, *self.input_shape)
        return obs.to(exact).sub_(background.contiguous(memory_format=layout)).to(factor)

    def _others(self) -> list[Layer]:
        """The convolutions but the first."""
        layers = (layer for layer in self.rest if isinstance(layer, nn.Conv2d))
        return [(layer.weight, layer.bias, layer.stride[0]) for layer in layers]

    def for_inference(self) -> Self:
        """The same, never to be trained: what is usual is computed when weights have been loaded,
        what is not in each forward pass, where that is little."""
        layers = [(self.first.weight, self.first.bias, self.first.stride[0]), *self._others()]
        self._frozen = Frozen(self.background, self.pixel_scale, layers, self._hidden_layers)
        return self.eval()

    def _rounding(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.in_bfloat16)

    @torch.no_grad()
    def standardize(self, frames: Tensor) -> None:
        """Measure the input scaling on `frames` [F, H, W] u8: a background, one global scale.

        The background is each pixel's median; the scale, the root mean square of all distances
        from it, at least 1 so that a still picture cannot blow up.
        """
        background = frames.median(dim=0).values.float()
        self.background.copy_(background)
        distance = frames.float() - background
        self.pixel_scale.copy_(distance.pow(2).mean().sqrt().clamp(min=1.0))


def by_loops(obs: Tensor) -> bool:
    """May what is computed of these be found by loops of our own?"""
    return obs.is_cpu and not torch.compiler.is_compiling()


def network_for(config: Config, device: str = "cpu") -> DQN:
    """The network that a configuration describes, with fresh weights on the CPU.

    device: "cpu" or "cuda", where it will compute: what --precision auto goes by.
    """
    bfloat16 = config.precision == "bfloat16" or (
        config.precision == "auto" and device == "cpu" and multiplies_bfloat16()
    )
    return DQN((STACK, *FRAME_SHAPE), config.n_actions, config.network, config.dueling, bfloat16)


def state_vector(network: nn.Module) -> np.ndarray:
    """Parameters and buffers, in the order of `state_dict()`, as one [P] f32 vector on the CPU."""
    parts = [t.detach().reshape(-1).float() for t in network.state_dict().values()]
    return torch.cat(parts).cpu().numpy()


def state_size(network: nn.Module) -> int:
    """Length of `state_vector`."""
    return sum(t.numel() for t in network.state_dict().values())


@torch.no_grad()
def load_state_vector(network: nn.Module, vector: np.ndarray) -> None:
    """The inverse of `state_vector`. Raises ValueError when the length does not fit."""
    if vector.shape != (state_size(network),):
        raise ValueError(f"state vector {vector.shape}, expected ({state_size(network)},)")
    flat, start = torch.tensor(vector), 0
    for tensor in network.state_dict().values():
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
