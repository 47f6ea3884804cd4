"""What a network that is only played computes where the screen differs from its background.

Of the background itself each layer makes the same every time: that is computed once. A place where
it does not gives the usual value and, for everything that it sees and that is not the usual either,
the difference times its weight. In Pong that leaves some three in a hundred of the products of
F.conv2d and F.linear, too few to be worth a library's while: a compiled loop adds them up, in
float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.compiled import compiled
from common.foreground import (
    FEWEST_SCREENS,
    Array,
    Layer,
    by_blocks,
    find_blocks,
    find_windows,
    made_of_blocks,
)

AT_ONCE = 4  # products per sum, as many as `_product` names: a sum waits for the one before


class Frozen:
    """Convolutions and the first fully connected layer of a network as it is, each with its ReLU.

    layers: as in `convolve_foreground`; scale: divides the weights of the first; hidden: one layer
    or more that see all that the last convolution gives. What is written into their tensors counts
    from the next call on.
    """

    def __init__(
        self,
        background: Tensor,
        scale: Tensor,
        layers: Sequence[Layer],
        hidden: Sequence[nn.Linear],
    ) -> None:
        self._background, self._scale, self._convolutions = background, scale, layers
        self._hidden = hidden
        parameters = [t for weight, bias, _ in layers for t in (weight, bias) if t is not None]
        parameters += [t for layer in hidden for t in (layer.weight, layer.bias)]
        self._tensors = [background, scale, *parameters]
        self._versions: list[int] = []
        self._layers: list[tuple[int, int, Array, Array]] = []

    def __call__(self, obs: Tensor) -> Tensor | None:
        """obs: [B, STACK, H, W] u8 -> [B, units of all hidden layers] f32; None where there are so
        many, or so much differs, that a library is faster, or where `obs` do not lie as
        `convolve_foreground` needs them."""
        screens = obs.permute(0, 2, 3, 1)
        few = 0 < len(obs) < FEWEST_SCREENS
        if not (few and screens.is_contiguous() and made_of_blocks(screens, self._convolutions[0])):
            return None
        if (found := find_blocks(screens, self._background, self._background)) is None:
            return None
        versions = [tensor._version for tensor in self._tensors]  # how often each was written to
        if versions != self._versions:
            self._prepare()
            self._versions = versions
        rows, usual_rows, less = found
        differences = less.astype(np.float32)
        for kernel, stride, weight, usual in self._layers[:-1]:
            rows, usual_rows, seen = find_windows(rows, usual_rows, kernel, stride)
            values = np.maximum(_product(differences, seen, weight, usual), 0)
            differences = values - values[0]
        *_, weight, usual = self._layers[-1]
        hidden = _product(differences, rows[1:].reshape(len(obs), -1), weight, usual)
        return torch.from_numpy(hidden).relu_()

    @torch.no_grad()
    def _prepare(self) -> None:
        """Of each layer: kernel, stride, weights [places that one sees * C, C'], and what it makes
        of what is usual [C'], before the ReLU."""
        (weight, bias, stride), *others = self._convolutions
        first = by_blocks((weight / self._scale, bias, stride))
        usual = torch.zeros(first[0].shape[1])
        self._layers.clear()
        for weight, bias, stride in [first, *others]:
            kernel = weight.shape[-1]
            by_place = weight.float().permute(2, 3, 1, 0).flatten(0, 1)
            usual = self._add(kernel, stride, by_place, bias, usual)
        weight = torch.cat([layer.weight.t() for layer in self._hidden], dim=1)
        bias = torch.cat([layer.bias for layer in self._hidden])
        self._add(0, 0, weight.view(len(usual), -1, len(bias)).transpose(0, 1), bias, usual)

    def _add(
        self, kernel: int, stride: int, weight: Tensor, bias: Tensor | None, usual: Tensor
    ) -> Tensor:
        """One layer. weight: [places that one sees, C, C']; usual: [C], what it sees of the
        background. -> what the next one sees of it."""
        made = usual @ weight.sum(dim=0)
        if bias is not None:
            made += bias
        flat = weight.flatten(0, 1).contiguous().numpy()
        self._layers.append((kernel, stride, flat, made.numpy()))
        return made.relu()


@compiled
def _product(differences: Array, seen: Array, weight: Array, usual: Array) -> Array:
    """differences: [R, C], row 0 being 0; seen: [N, K] i64, rows; weight: [K * C, C']; usual: [C']
    -> [N, C']: the usual and, for all that is seen, difference times weight."""
    channels = differences.shape[1]
    made = np.empty((len(seen), len(usual)), np.float32)
    factors = np.empty(seen.shape[1] * channels + AT_ONCE, np.float32)
    lines = np.empty(len(factors), np.int64)  # of `weight`
    for n in range(len(seen)):
        count = 0
        for k in range(seen.shape[1]):
            row = seen[n, k]
            if row:
                for channel in range(channels):
                    difference = differences[row, channel]
                    if difference:
                        factors[count] = difference
                        lines[count] = k * channels + channel
                        count += 1
        factors[count : count + AT_ONCE] = 0
        lines[count : count + AT_ONCE] = 0
        made[n] = usual
        for i in range(0, count, AT_ONCE):
            a, b, c, d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
            at_a, at_b, at_c, at_d = lines[i], lines[i + 1], lines[i + 2], lines[i + 3]
            for unit in range(len(usual)):
                made[n, unit] += (
                    a * weight[at_a, unit]
                    + b * weight[at_b, unit]
                    + c * weight[at_c, unit]
                    + d * weight[at_d, unit]
                )
    return made
