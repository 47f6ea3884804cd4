"""The convolutions, where a screen differs from the usual one and nowhere else.

Most of a screen looks the same all the time, and a layer that sees the same gives the same values.
So each layer is a product of matrices with a row for every place that differs, a tenth of them in
Pong's first layer, and a few rows for all the others: those of the usual screen, one for neighbours
that are alike, and a single one where the usual screen is the background that is taken off. Values
and gradients are those of F.conv2d. Under autocast factors are rounded, as F.conv2d's are.
`common/frozen.py` goes further, where there is no gradient and little to do.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.compiled import compiled
from common.config import STACK

BLOCK = 4  # pixels each way: the first layer's stride, and half of its kernel
LARGEST_SHARE = 0.33  # of the first layer's places: where more differ, F.conv2d is faster, ...
FEWEST_SCREENS = 32  # ... and where there are fewer
# A product has so many rows or a multiple, those that are left over being for all the others too:
# oneDNN compiles one in bfloat16 anew for every number of rows that it has not met, which took a
# third of an update (docs/performance.md, "What was tried").
ROWS = 64
PIXEL = np.uint32  # what it is in each frame of a stack, the oldest in the lowest byte
Layer = tuple[Tensor, Tensor | None, int]  # weight, bias, stride
Array = np.ndarray


class Places(NamedTuple):
    """What a layer gives. rows: [B, H, W] i64, of each place its row among values [R, C], which are
    f32 or what autocast says. Places that do not differ share those of the usual screen."""

    rows: Array
    values: Tensor

    def images(self) -> Tensor:
        """-> [B, C, H, W] channels last."""
        return _select(self.values, self.rows).view(*self.rows.shape, -1).permute(0, 3, 1, 2)


def convolve_foreground(obs: Tensor, background: Tensor, layers: Sequence[Layer]) -> Places | None:
    """F.conv2d and ReLU, layer after layer, of obs - background; None where F.conv2d is faster.

    obs: [B, STACK, H, W] u8; background: [H, W] f32, whole grey levels, the usual screen too unless
    it is 0, as before it has been measured; layers: weight [C', C, K, K] f32, bias [C'] f32, stride
    of each, that of the first being BLOCK and half of its kernel.
    """
    screens = obs.permute(0, 2, 3, 1)  # [B, H, W, STACK]
    factor = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    pays = pays_here(factor) and len(obs) >= FEWEST_SCREENS
    if not (pays and screens.is_contiguous() and made_of_blocks(screens, layers[0])):
        return None
    usual = background if background.any() else usual_screen(screens)
    if (found := find_blocks(screens, background, usual)) is None:
        return None
    rows, usual_rows, less = found
    values = torch.from_numpy(less).to(factor)
    for number, (weight, bias, stride) in enumerate([by_blocks(layers[0]), *layers[1:]]):
        rows, usual_rows, seen = find_windows(rows, usual_rows, weight.shape[-1], stride)
        if number == 0 and np.count_nonzero(rows >= usual_rows) > LARGEST_SHARE * rows[1:].size:
            return None
        values = _product(_select(values, seen).view(len(seen), -1), weight, bias)
    return Places(rows[1:], values)


@functools.cache
def pays_here(factor: torch.dtype) -> bool:
    """Measured on a Zen 3 (AVX2), which could only imitate bfloat16, and on a Zen 4 (AVX-512); as
    it is now on the latter only, in float32 held to AVX2 too."""
    measured = {"AVX2": [torch.float32], "AVX512": [torch.float32, torch.bfloat16]}
    return factor in measured.get(torch.backends.cpu.get_cpu_capability(), [])


def made_of_blocks(screens: Tensor, first: Layer) -> bool:
    """Whether screens [B, H, W, STACK] and the first layer are."""
    _, height, width, channels = screens.shape
    weight, _, stride = first
    two_by_two = (*weight.shape[2:], stride) == (2 * BLOCK, 2 * BLOCK, BLOCK)
    return channels == STACK and two_by_two and height % BLOCK == width % BLOCK == 0


def by_blocks(first: Layer) -> Layer:
    """The first layer as one that sees two by two blocks, each byte of a block a channel."""
    weight, bias, _ = first
    parts = weight.reshape(len(weight), STACK, 2, BLOCK, 2, BLOCK)
    return parts.permute(0, 3, 5, 1, 2, 4).flatten(1, 3), bias, 1


def usual_screen(screens: Tensor) -> Tensor:
    """[B, H, W, STACK] u8, B >= 5 -> [H, W] u8, of each pixel the median of five screens."""
    a, b, c, d, e = (screen[..., -1].clone() for screen in screens[:: len(screens) // 5][:5])
    low, high = a.minimum(b).maximum(c.minimum(d)), a.maximum(b).minimum(c.maximum(d))
    median: Tensor = low.minimum(high).maximum(low.maximum(high).minimum(e))
    return median


def find_blocks(
    screens: Tensor, background: Tensor, usual: Tensor
) -> tuple[Array, int, Array] | None:
    """Screens [B, H, W, STACK] u8, the others [H, W], whole grey levels -> rows of the blocks of 4
    by 4 pixels [1 + B, H', W'] i64, first those of the usual screen; how many rows these are; what
    all are less their background [R, BLOCK * BLOCK * STACK] i16. None where too many differ."""
    images, height, width, _ = screens.shape
    down, across = height // BLOCK, width // BLOCK
    rows = np.empty((1 + images, down, across), np.int64)
    most = int(LARGEST_SHARE * rows[1:].size)  # about as many places of the first layer see one
    less = np.empty((rows[0].size + most, BLOCK * BLOCK * STACK), np.int16)
    if usual is background:
        usual_rows = _number_one(rows[0], less)
    else:
        blocks = (usual - background).short().view(down, BLOCK, across, BLOCK).transpose(1, 2)
        seen = blocks.reshape(down, across, -1, 1).expand(-1, -1, -1, STACK).flatten(2)
        usual_rows = _number_usual(seen.numpy(), rows[0], less)
    pixels = screens.flatten(2).numpy().view(PIXEL)
    levels = (usual.numpy().astype(np.uint8), background.numpy().astype(np.uint8))
    count = _number_blocks(pixels, *levels, rows, less[: usual_rows + most], usual_rows)
    return (rows, usual_rows, less[:count]) if count else None


def _number_one(rows: Array, kept: Array) -> int:
    """As `_number_usual`, of places that all see row 0 only."""
    rows[:], kept[0] = 0, 0
    return 1


@compiled
def _number_usual(seen: Array, rows: Array, kept: Array) -> int:
    """seen: [H, W, N], by places of the usual screen -> rows [H, W] among kept [R, N], the same for
    neighbours that see the same. -> rows in all."""
    count = 0
    for down in range(rows.shape[0]):
        for across in range(rows.shape[1]):
            rows[down, across] = count
            for up, left in ((0, 1), (1, 0)):
                if down < up or across < left:
                    continue
                row, same = rows[down - up, across - left], True
                for i in range(seen.shape[2]):
                    same &= kept[row, i] == seen[down, across, i]
                if same:
                    rows[down, across] = row
            if rows[down, across] == count:
                kept[count] = seen[down, across]
                count += 1
    return count


@compiled
def _number_blocks(
    pixels: Array, usual: Array, background: Array, rows: Array, less: Array, count: int
) -> int:
    """pixels: [B, H, W] PIXEL; usual and background: [H, W] u8; count: rows so far, those of
    rows[0]. -> rows in all; 0 if there is no room."""
    usual_pixels = usual * PIXEL(0x01010101)
    differ = np.empty(usual.shape[1], PIXEL)
    for image in range(1, rows.shape[0]):
        for down in range(rows.shape[1]):
            top = down * BLOCK
            differ[:] = 0  # of each column of four pixels
            for y in range(top, top + BLOCK):
                for x in range(len(differ)):
                    differ[x] |= pixels[image - 1, y, x] ^ usual_pixels[y, x]
            for across in range(rows.shape[2]):
                left = across * BLOCK
                here = PIXEL(0)
                for x in range(left, left + BLOCK):
                    here |= differ[x]
                rows[image, down, across] = count if here else rows[0, down, across]
                if not here:
                    continue
                if count == len(less):
                    return 0
                i = 0
                for y in range(top, top + BLOCK):
                    for x in range(left, left + BLOCK):
                        for frame in range(STACK):
                            value = pixels[image - 1, y, x] >> PIXEL(8 * frame) & PIXEL(255)
                            less[count, i] = np.int16(value) - np.int16(background[y, x])
                            i += 1
                count += 1
    return count


def find_windows(
    before: Array, usual_before: int, kernel: int, stride: int
) -> tuple[Array, int, Array]:
    """Rows of the places of a layer [1 + B, H, W], first those of the usual screen, and how many
    these are -> both of the next layer; what each of its rows sees [R, K * K], R being a multiple
    of ROWS."""
    images, height, width = before.shape
    rows = np.empty(
        (images, (height - kernel) // stride + 1, (width - kernel) // stride + 1), np.int64
    )
    seen = np.empty((rows.size + ROWS, kernel * kernel), np.int64)
    if usual_before == 1:
        usual_rows = _number_one(rows[0], seen)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(before[0], (kernel, kernel))
        of_usual = windows[::stride, ::stride].reshape(*rows[0].shape, -1)
        usual_rows = _number_usual(of_usual, rows[0], seen)
    count = _number_windows(before, usual_before, kernel, stride, rows, seen, usual_rows)
    padded = -(-count // ROWS) * ROWS
    seen[count:padded] = 0
    return rows, usual_rows, seen[:padded]


@compiled
def _number_windows(
    before: Array, usual_before: int, kernel: int, stride: int, rows: Array, seen: Array, count: int
) -> int:
    """usual_before: so many rows are those of before[0]; count: and of rows[0], the only ones so
    far. -> rows in all."""
    highest = np.empty(before.shape[2], np.int64)
    for image in range(1, rows.shape[0]):
        for down in range(rows.shape[1]):
            top = down * stride
            highest[:] = 0  # row in each column that this line of windows sees
            for y in range(top, top + kernel):
                for x in range(len(highest)):
                    highest[x] = max(highest[x], before[image, y, x])
            for across in range(rows.shape[2]):
                left = across * stride
                here = 0
                for x in range(left, left + kernel):
                    here = max(here, highest[x])
                rows[image, down, across] = rows[0, down, across] if here < usual_before else count
                if here < usual_before:
                    continue
                i = 0
                for y in range(top, top + kernel):
                    for x in range(left, left + kernel):
                        seen[count, i] = before[image, y, x]
                        i += 1
                count += 1
    return count


def _product(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What places see, [R, K * K * C] -> [R, C']."""
    return F.relu(F.linear(seen, weight.permute(0, 2, 3, 1).flatten(1), bias))


def _select(values: Tensor, rows: Array) -> Tensor:
    """[R, C] and N rows, i64 of any shape -> [N, C]."""
    index = torch.from_numpy(rows.reshape(-1))
    if not values.requires_grad:
        return values.index_select(0, index)
    selected: Tensor = _Select.apply(values, index)  # type: ignore[no-untyped-call]
    return selected


class _Select(torch.autograd.Function):
    """The gradients of all that select a row are added up in float32."""

    @staticmethod
    def forward(context: Any, values: Tensor, rows: Tensor) -> Tensor:
        context.save_for_backward(rows)
        context.count = len(values)
        return values.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = context.saved_tensors
        total = torch.zeros(context.count, gradient.shape[1])
        _add_rows(gradient.float().contiguous().numpy(), rows.numpy(), total.numpy())
        return total.to(gradient.dtype), None


@compiled
def _add_rows(parts: Array, rows: Array, total: Array) -> None:
    """Parts [N, C] f32 to these rows of total [R, C] f32, in the order in which they stand."""
    for i in range(len(rows)):
        row = rows[i]
        for channel in range(parts.shape[1]):
            total[row, channel] += parts[i, channel]
