"""A fully connected layer that uses the whole width of a CPU's vector units.

PyTorch leaves float32 products to MKL, which on AMD's CPUs stops at AVX2: half of what a Zen 5 can
do. oneDNN, which computes the convolutions, has no such preference (docs/performance.md).
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """nn.Linear, [B, in] -> [B, out]: the same but for the order of its sums.

    In memory the weights of one input lie side by side, so that those of an input that is zero can
    be passed over (`common/hidden.py`); their shape is nn.Linear's. torch.compile is left to choose
    for itself.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())

    def forward(self, x: Tensor) -> Tensor:
        in_float32 = x.dtype == self.weight.dtype == torch.float32
        if torch.compiler.is_compiling() or not (x.is_cpu and in_float32 and onednn_is_wider()):
            return super().forward(x)
        y: Tensor = _ByOneDNN.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


@functools.cache
def onednn_is_wider() -> bool:
    """Whether this build of PyTorch has it, and it may use wider vectors than MKL does."""
    available = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and torch.backends.cpu.get_cpu_capability() == "AVX512"


class _ByOneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _product(grad, weight.t()), _product(x.t(), grad.t()).t(), grad.sum(dim=0)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias: the operator behind torch.compile's linear layers."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product
