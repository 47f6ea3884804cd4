"""The convolutions, where the screen differs from its background and nowhere else.

Most of a screen looks the same all the time. Less its background it is zero there, and wherever a
layer sees nothing but zeros, or nothing but what came of them, it gives the same values. So each
layer is a product of matrices with a row for every place that is not like that, a tenth of them in
Pong's first layer, and one row for all the others. Values and gradients are those of F.conv2d.
Under autocast factors are rounded, as F.conv2d's are. What differs, and what a place sees, NumPy
finds in half the time that PyTorch takes.
"""

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import STACK

BLOCK = 4  # pixels each way: the first layer's stride, and half of its kernel
QUAD = np.complex128  # what carries 16 bytes at once: four pixels of a row, each of STACK bytes
# Of the first layer's places: where more differ, F.conv2d is faster, by what is multiplied.
LARGEST_SHARE = {torch.float32: 0.25, torch.bfloat16: 0.21}
FEWEST_SCREENS = 32  # and where there are fewer
# A product has so many rows or a multiple, those that are left over being for all the others too:
# oneDNN compiles one in bfloat16 anew for every number of rows that it has not met, which took a
# third of an update (docs/performance.md, "What was tried").
ROWS = 64
Layer = tuple[Tensor, Tensor | None, int]  # weight, bias, stride
Array = np.ndarray  # places: [P] i64, where a flattened [B, H', W'] is true


def convolve_foreground(obs: Tensor, background: Tensor, layers: Sequence[Layer]) -> Tensor | None:
    """F.conv2d and ReLU, layer after layer, of obs - background; None where F.conv2d is faster.

    obs: [B, STACK, H, W] u8; background: [H, W] f32, whole grey levels; layers: weight [C', C, K,
    K] f32, bias [C'] f32 and stride of each, the first with stride BLOCK and a kernel of twice that
    -> [B, C, H', W'] channels last, f32 or what autocast says.
    """
    screens = obs.permute(0, 2, 3, 1)  # [B, H, W, STACK]
    factor = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if not (pays_here(factor) and screens.is_contiguous() and _fits(screens, layers[0])):
        return None
    empty = background.to(torch.uint8)[None, :, :, None].expand_as(screens[:1]).contiguous()
    quads, usual = _quads(screens), _quads(empty)
    layers = [_of_blocks(layers[0]), *layers[1:]]
    differing = [_blocks_that_differ(quads, usual)]  # and of each layer the places that see any
    for weight, _, stride in layers:
        differing.append(_windows_with_any(differing[-1], weight.shape[-1], stride))
    if differing[1].mean() > LARGEST_SHARE[factor]:
        return None
    places = np.flatnonzero(differing[0])
    values = torch.zeros(len(places) + 1, BLOCK * BLOCK * STACK, dtype=factor)
    values[:-1] = torch.from_numpy(_blocks_less_background(quads, usual, places))
    for (weight, bias, stride), (before, after) in zip(layers, pairwise(differing), strict=True):
        kernel, places = weight.shape[-1], np.flatnonzero(after)
        seen = np.full((_row_count(places), kernel * kernel), len(values) - 1)
        seen[: len(places)] = _windows(_rows(before), (kernel, kernel), (stride, stride), places)
        values = _product(_select(values, seen).view(len(seen), -1), weight, bias)
    everywhere = _select(values, _rows(differing[-1]))
    return everywhere.view(*differing[-1].shape, -1).permute(0, 3, 1, 2)


@functools.cache
def pays_here(factor: torch.dtype) -> bool:
    """Measured on a Zen 3 (AVX2), which could only imitate bfloat16, and on a Zen 4 (AVX-512); as
    it is now on the latter only, in float32 held to AVX2 too."""
    measured = {"AVX2": [torch.float32], "AVX512": [torch.float32, torch.bfloat16]}
    return factor in measured.get(torch.backends.cpu.get_cpu_capability(), [])


def _fits(screens: Tensor, first: Layer) -> bool:
    images, height, width, channels = screens.shape
    weight, _, stride = first
    by_blocks = (*weight.shape[2:], stride) == (2 * BLOCK, 2 * BLOCK, BLOCK)
    whole = height % BLOCK == width % BLOCK == 0
    return images >= FEWEST_SCREENS and channels == STACK and by_blocks and whole


def _of_blocks(first: Layer) -> Layer:
    """The first layer as one that sees two by two blocks, each byte of a block a channel."""
    weight, bias, _ = first
    by_blocks = weight.reshape(len(weight), STACK, 2, BLOCK, 2, BLOCK)
    return by_blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3), bias, 1


def _quads(screens: Tensor) -> Array:
    """[B, H, W, STACK] u8 -> [B, H, W / 4] QUAD, the same memory."""
    return screens.flatten(2).numpy().view(QUAD)


def _blocks_that_differ(quads: Array, usual: Array) -> Array:
    """[B, H, W / 4] and [1, H, W / 4] QUAD -> [B, H / 4, W / 4] bool."""
    differs = (quads.view(np.int64) != usual.view(np.int64)).view(np.int16)  # one for each quad
    lines = differs.reshape(len(differs), -1, BLOCK, differs.shape[2])
    blocks: Array = (lines[:, :, 0] | lines[:, :, 1] | lines[:, :, 2] | lines[:, :, 3]) != 0
    return blocks


def _blocks_less_background(quads: Array, usual: Array, places: Array) -> Array:
    """[B, H, W / 4] and [1, H, W / 4] QUAD and P blocks -> [P, BLOCK * BLOCK * STACK] i16."""
    here, there = (_windows(grid, (BLOCK, 1), (BLOCK, 1), places) for grid in (quads, usual))
    less: Array = np.subtract(here.view(np.uint8), there.view(np.uint8), dtype=np.int16)
    return less


def _product(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What places see, [R, K * K * C] -> [R, C']."""
    return F.relu(F.linear(seen, weight.permute(0, 2, 3, 1).flatten(1), bias))


def _row_count(places: Array) -> int:
    """R: a row for each of P places and at least one for all the others."""
    return (len(places) // ROWS + 1) * ROWS


def _rows(differs: Array) -> Array:
    """-> as differs, i64: the row of each place among a layer's values; that of all that do not
    differ follows the others."""
    places = np.flatnonzero(differs)
    rows = np.full(differs.shape, len(places))
    rows.reshape(-1)[places] = np.arange(len(places))
    return rows


def _select(values: Tensor, rows: Array) -> Tensor:
    """[R, C] and N rows, i64 of any shape -> [N, C]. The gradients of all that select a row are
    added up in float32."""
    index = torch.from_numpy(rows.reshape(-1))
    if not values.requires_grad:
        return values.index_select(0, index)
    return values.float().index_select(0, index).to(values.dtype)


def _windows_with_any(differs: Array, kernel: int, stride: int) -> Array:
    """[B, H, W] bool -> [B, H', W'] bool: the places of a layer that see any."""
    _, height, width = differs.shape
    down = [differs[:, i : height - kernel + 1 + i : stride] for i in range(kernel)]
    rows = np.logical_or.reduce(down)
    across = [rows[:, :, i : width - kernel + 1 + i : stride] for i in range(kernel)]
    seen: Array = np.logical_or.reduce(across)
    return seen


def _windows(grid: Array, size: tuple[int, int], steps: tuple[int, int], places: Array) -> Array:
    """What P places see of [B, H, W], or of [1, H, W] that is the same for all images, so many
    steps apart -> [P, size[0] * size[1]]."""
    starts = _window_starts(grid.shape, size, steps).take(places, mode="wrap")  # to the one image
    within = np.arange(size[0])[:, None] * grid.shape[2] + np.arange(size[1])
    seen: Array = grid.reshape(-1).take(starts[:, None] + within.reshape(-1))
    return seen


@functools.cache
def _window_starts(shape: tuple[int, ...], size: tuple[int, int], steps: tuple[int, int]) -> Array:
    """-> [B * H' * W'] i64: the first element that each place sees."""
    index = np.arange(math.prod(shape)).reshape(shape)
    down, across = (
        slice(0, side - extent + 1, step)
        for side, extent, step in zip(shape[1:], size, steps, strict=True)
    )
    starts: Array = index[:, down, across].reshape(-1)
    return starts
