"""The hidden layer, of few inputs.

Nineteen in twenty of its inputs are zero, after some two thousand updates of Pong: they come out of
a ReLU, and where the screen does not differ from its background next to nothing is left of them.
What is zero adds nothing, its weights get no gradient, and the ReLU passes none on to what is
before it. So a compiled loop goes through the rest, in float32; where that is much, a library
multiplies everything.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.compiled import compiled, compiled_in_any_order
from common.foreground import Array, Places
from common.linear import Linear

LARGEST_SHARE = 0.25  # of the inputs: where more are not zero, a library is faster


def multiply_few(places: Places, layers: Sequence[Linear]) -> list[Tensor] | None:
    """Of each layer what it makes of all places of a screen, [B, out] f32; None where a library is
    faster. Inputs that are zero are given a gradient of zero, as a ReLU before them would."""
    few = Few.of(places)
    if few is None:
        return None
    values = places.values
    return [_Multiply.apply(values, layer.weight, layer.bias, few) for layer in layers]  # type: ignore[no-untyped-call]


class Few(NamedTuple):
    """What is not zero among the values of places."""

    rows: Array  # [B, P] i64, as in Places
    ends: Array  # [R] i64: where the numbers of a row end, and those of the next one begin
    channels: Array  # [N] i64, of each number
    numbers: Array  # [N] f32

    @classmethod
    def of(cls, places: Places) -> "Few | None":
        """None where they are many."""
        values = places.values.detach().float().numpy()
        rows = places.rows.reshape(len(places.rows), -1)
        room = values.size + 1
        ends, channels = np.empty(len(values), np.int64), np.empty(room, np.int64)
        numbers = np.empty(room, np.float32)
        inputs = _find(values, rows, ends, channels, numbers)
        few = inputs <= LARGEST_SHARE * rows.size * values.shape[1]
        return cls(rows, ends, channels, numbers) if few else None


@compiled
def _find(values: Array, rows: Array, ends: Array, channels: Array, numbers: Array) -> int:
    """-> how many inputs of the whole batch are not zero."""
    count = 0
    for row in range(values.shape[0]):
        for channel in range(values.shape[1]):
            channels[count] = channel
            numbers[count] = values[row, channel]
            if values[row, channel] != 0:
                count += 1
        ends[row] = count
    inputs = 0
    for image in range(rows.shape[0]):
        for place in range(rows.shape[1]):
            row = rows[image, place]
            inputs += ends[row] - (ends[row - 1] if row else 0)
    return inputs


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, few: Few) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.few, ctx.shape, ctx.dtype = few, values.shape, values.dtype
        made = bias.repeat(len(few.rows), 1)
        _add_products(*few, weight.detach().t().numpy(), made.numpy())
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (weight,), few = ctx.saved_tensors, cast(Few, ctx.few)
        of_values = torch.zeros(ctx.shape)
        of_weight = torch.empty(weight.shape[::-1])
        _find_gradients(
            *few,
            weight.t().numpy(),
            grad.contiguous().numpy(),
            of_values.numpy(),
            of_weight.numpy(),
        )
        return of_values.to(ctx.dtype), of_weight.t(), grad.sum(dim=0), None


# weight: [C * P, out]: of each channel the weights of each place, which lie side by side.


@compiled_in_any_order
def _add_products(
    rows: Array, ends: Array, channels: Array, numbers: Array, weight: Array, made: Array
) -> None:
    """To made [B, out]."""
    places = rows.shape[1]
    for place in range(places):
        for image in range(len(rows)):
            row = rows[image, place]
            i, end = (ends[row - 1] if row else 0), ends[row]
            while i + 4 <= end:  # a sum is read and written once for four products
                a, b, c, d = numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]
                at_a = channels[i] * places + place
                at_b = channels[i + 1] * places + place
                at_c = channels[i + 2] * places + place
                at_d = channels[i + 3] * places + place
                for unit in range(made.shape[1]):
                    made[image, unit] += (
                        a * weight[at_a, unit]
                        + b * weight[at_b, unit]
                        + c * weight[at_c, unit]
                        + d * weight[at_d, unit]
                    )
                i += 4
            while i < end:
                a, at_a = numbers[i], channels[i] * places + place
                for unit in range(made.shape[1]):
                    made[image, unit] += a * weight[at_a, unit]
                i += 1


@compiled_in_any_order
def _find_gradients(
    rows: Array,
    ends: Array,
    channels: Array,
    numbers: Array,
    weight: Array,
    of_made: Array,
    of_values: Array,
    of_weight: Array,
) -> None:
    """of_made: [B, out] -> of_values [R, C], zero before; of_weight, as weight."""
    places = rows.shape[1]
    of_weight[:] = 0
    for place in range(places):
        for image in range(len(rows)):
            row = rows[image, place]
            for i in range(ends[row - 1] if row else 0, ends[row]):
                number, at, total = numbers[i], channels[i] * places + place, np.float32(0)
                for unit in range(of_made.shape[1]):
                    of_weight[at, unit] += number * of_made[image, unit]
                    total += weight[at, unit] * of_made[image, unit]
                of_values[row, channels[i]] += total
