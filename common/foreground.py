"""The convolutions, where the screen differs from its background and nowhere else.

Most of a screen looks the same all the time. Less its background it is zero there, and wherever a
layer sees nothing but zeros, or nothing but what came of them, it gives the same values. So each
layer is a product of matrices with a row for every place that is not like that, a tenth of them in
Pong's first layer, and one row for all the others. Values and gradients are those of F.conv2d.
Under autocast factors are rounded, as F.conv2d's are.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import STACK

KERNEL, STRIDE = 8, 4  # of the first layer: two by two blocks of four by four pixels
QUAD = torch.complex128  # what carries 16 bytes at once: four pixels of a row, each of STACK bytes
# Of the first layer's places: where more differ, F.conv2d is faster, by what is multiplied.
LARGEST_SHARE = {torch.float32: 0.25, torch.bfloat16: 0.17}
FEWEST_SCREENS = 32  # and where there are fewer
# A product has so many rows or a multiple, those that are left over being for all the others too:
# oneDNN compiles one in bfloat16 anew for every number of rows that it has not met, which took a
# third of an update (docs/performance.md, "What was tried").
ROWS = 64
Where = tuple[Tensor, ...]  # image, row and column of P places, [P] i64 each
Layer = tuple[Tensor, Tensor | None, int]  # weight, bias, stride


def convolve_foreground(obs: Tensor, background: Tensor, layers: Sequence[Layer]) -> Tensor | None:
    """F.conv2d and ReLU, layer after layer, of obs - background; None where F.conv2d is faster.

    obs: [B, STACK, H, W] u8; background: [H, W] f32, whole grey levels; layers: weight [C', C, K,
    K] f32, bias [C'] f32 and stride of each, the first with KERNEL and STRIDE -> [B, C, H', W']
    channels last, f32 or what autocast says.
    """
    screens = obs.permute(0, 2, 3, 1)  # [B, H, W, STACK]
    factor = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if not (pays_here(factor) and screens.is_contiguous() and _fits(screens, layers[0])):
        return None
    empty = background.to(torch.uint8)[None, :, :, None].expand_as(screens[:1]).contiguous()
    differs = _places_that_differ(screens, empty)
    where = differs.nonzero(as_tuple=True)
    if len(where[0]) > LARGEST_SHARE[factor] * differs.numel():
        return None
    seen = _pixels_seen(screens, empty, where)
    (weight, bias, _), *others = layers
    values = _product(seen, weight, bias)
    for weight, bias, stride in others:
        rows, kernel = _rows(differs, where), weight.shape[-1]
        differs = F.max_pool2d(differs.float(), kernel, stride) > 0
        where = differs.nonzero(as_tuple=True)
        windows = rows.unfold(1, kernel, stride).unfold(2, kernel, stride)[where].flatten(1)
        left_over = _row_count(where) - len(windows)
        windows = F.pad(windows, (0, 0, 0, left_over), value=len(values) - 1)
        seen = _select(values, windows).view(len(windows), -1)
        values = _product(seen, weight, bias)
    everywhere = _select(values, _rows(differs, where))
    return everywhere.view(*differs.shape, -1).permute(0, 3, 1, 2)


@functools.cache
def pays_here(factor: torch.dtype) -> bool:
    """Measured on a Zen 3 (AVX2), which could only imitate bfloat16, and on a Zen 4 (AVX-512)."""
    measured = {"AVX2": [torch.float32], "AVX512": [torch.float32, torch.bfloat16]}
    return factor in measured.get(torch.backends.cpu.get_cpu_capability(), [])


def _fits(screens: Tensor, first: Layer) -> bool:
    images, height, width, channels = screens.shape
    weight, _, stride = first
    by_blocks = (*weight.shape[2:], stride) == (KERNEL, KERNEL, STRIDE)
    whole = height % STRIDE == width % STRIDE == 0
    return images >= FEWEST_SCREENS and channels == STACK and by_blocks and whole


def _product(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What places see, [R, K * K * C] -> [R, C']."""
    return F.relu(F.linear(seen, weight.permute(0, 2, 3, 1).flatten(1), bias))


def _row_count(where: Where) -> int:
    """R: a row for each of P places and at least one for all the others."""
    return (len(where[0]) // ROWS + 1) * ROWS


def _select(values: Tensor, rows: Tensor) -> Tensor:
    """[R, C] and N rows, i64 of any shape -> [N, C]. The gradients of all that select a row are
    added up in float32."""
    return values.float().index_select(0, rows.flatten()).to(values.dtype)


def _rows(differs: Tensor, where: Where) -> Tensor:
    """-> [B, H', W'] i64: the row of each place among a layer's values; that of all that do not
    differ follows the others."""
    count = len(where[0])
    return torch.full(differs.shape, count).index_put_(where, torch.arange(count))


def _places_that_differ(screens: Tensor, empty: Tensor) -> Tensor:
    """-> [B, H / 4 - 1, W / 4 - 1] bool: of the first layer."""
    a, b = (screen.flatten(2).view(torch.int64) for screen in (screens, empty))
    differs = (a != b).view(torch.int16)  # [B, H, W / 4]: one for four pixels of a row
    differs = differs.view(len(differs), -1, STRIDE, differs.shape[2])
    blocks = differs[:, :, 0] | differs[:, :, 1] | differs[:, :, 2] | differs[:, :, 3]
    halves = blocks[:, :-1] | blocks[:, 1:]
    places: Tensor = (halves[:, :, :-1] | halves[:, :, 1:]) != 0
    return places


def _pixels_seen(screens: Tensor, empty: Tensor, where: Where) -> Tensor:
    """-> [R, KERNEL * KERNEL * STACK] f32, zeros from the row on that is for all the others."""
    image, row, column = where
    seen = torch.zeros(_row_count(where), KERNEL * KERNEL * STACK)
    seen[: len(image)] = _pixels(screens, image, row, column)
    seen[: len(image)] -= _pixels(empty, torch.zeros_like(image), row, column)
    return seen


def _pixels(screens: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """[B, H, W, STACK] u8 and three times [P] i64 -> [P, KERNEL * KERNEL * STACK] u8."""
    _, height, width, _ = screens.shape
    quads = screens.flatten().view(QUAD)
    per_row = width // STRIDE
    first = (image * height + row * STRIDE) * per_row + column  # the upper left quad
    within = (torch.arange(KERNEL)[:, None] * per_row + torch.arange(KERNEL // STRIDE)).flatten()
    found = quads.index_select(0, (first[:, None] + within).flatten())
    return found.view(torch.uint8).view(len(first), KERNEL * KERNEL * STACK)
