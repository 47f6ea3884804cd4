"""A function of a batch, captured once as a CUDA graph and from then on launched as a whole.

An update is some hundred small kernels: to launch them one by one keeps a CPU thread busy for
longer than the GPU needs for the work.
"""

import functools
import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.config import FRAME_SHAPE, STACK
from learner.replay import TransitionBatch

WARM_UP_CALLS = 3  # before it is captured: libraries choose kernels and allocate what they need
Launch = Callable[[], object]


class CapturedStep:
    """step(batch, learning_rate) -> Tensor, on batches of one size.

    The graph works on the tensors that it was captured with: whoever loads weights must copy them
    into place. mutated: every tensor that the step changes; capturing runs the step, and their
    values are restored before this returns or raises. Raises RuntimeError when the device cannot
    capture.

    capture: makes of a function that works on the device one that launches it.
    """

    def __init__(
        self,
        step: Callable[[TransitionBatch, Tensor], Tensor],
        mutated: Sequence[Tensor],
        batch_size: int,
        device: torch.device,
        capture: Callable[[Launch], Launch] | None = None,
    ) -> None:
        self._step = step
        self._batch = blank_batch(batch_size, device)
        self._learning_rate = torch.zeros((), device=device)
        # Detached: a clone with a history would hold on to its parameter's gradient accumulator,
        # which belongs to today's stream, and a capture must not wait for that one.
        before = [tensor.detach().clone() for tensor in mutated]
        try:
            self._launch = (capture or as_cuda_graph)(self._run)
            self._launch()
        finally:
            with torch.no_grad():
                for tensor, value in zip(mutated, before, strict=True):
                    tensor.copy_(value)

    def __call__(self, batch: TransitionBatch, learning_rate: float) -> Callable[[], Tensor]:
        """Launches the step. -> what waits for it, and gives what it returned, on the CPU."""
        for name in batch.__slots__:
            getattr(self._batch, name).copy_(getattr(batch, name), non_blocking=True)
        self._learning_rate.fill_(learning_rate)
        self._launch()
        return read_later(self._output)

    def _run(self) -> None:
        self._output = self._step(self._batch, self._learning_rate)


def read_later(tensor: Tensor) -> Callable[[], Tensor]:
    """Lets a copy to the host begin. -> what waits for it; what is launched later may change the
    tensor meanwhile."""
    on_a_gpu = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_a_gpu)
    copy.copy_(tensor, non_blocking=True)
    if not on_a_gpu:
        return lambda: copy
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        done.synchronize()
        return copy

    return wait


def blank_batch(size: int, device: torch.device) -> TransitionBatch:
    """All-zero observations, and returns of 1, so that the warm-up has a gradient."""
    pixels = torch.zeros(2, size, *FRAME_SHAPE, STACK, dtype=torch.uint8, device=device)
    obs, next_obs = pixels.permute(0, 1, 4, 2, 3)  # channels last, as the replay draws them
    ones = (torch.ones(size, device=device) for _ in range(3))
    return TransitionBatch(
        obs=obs,
        action=torch.zeros(size, dtype=torch.int64, device=device),
        n_step_return=next(ones),
        discount=next(ones),
        next_obs=next_obs,
        weight=next(ones),
    )


def as_cuda_graph(function: Launch) -> Launch:
    """As PyTorch's documentation says ("CUDA semantics", CUDA graphs, whole-network capture)."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            function()
    usual = torch.cuda.current_stream()
    usual.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    gc.collect()  # now: garbage of the GPU that is given back within a capture would spoil it
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph):
            function()
    except BaseException:
        torch.cuda.set_stream(usual)  # a capture that fails would leave its own
        raise
    finally:
        if collecting:
            gc.enable()

    @functools.wraps(function)  # and so holds on to it: the graph works on its tensors
    def launch() -> None:
        graph.replay()

    return launch
