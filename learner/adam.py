"""Adam (Kingma and Ba 2015, algorithm 1), stepped by PyTorch's fused kernel."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETA1, BETA2 = 0.9, 0.999


class Adam:
    """One step for all parameters of a network.

    The same kernel and the same bits as `torch.optim.Adam(fused=True)`, whose constructor imports
    PyTorch's compiler: four seconds of every start, and nothing of it is used here.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, epsilon: float
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.learning_rate, self.epsilon = learning_rate, epsilon
        # Moments have the strides of their parameter.
        self.first_moments = [torch.zeros_like(p) for p in self.parameters]
        self.second_moments = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def gradients(self) -> list[Tensor]:
        """With the strides of their parameters, as autograd leaves them."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Of all of them together, [] f32: what torch.nn.utils.get_total_norm gives, in two thirds
        of its time."""
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
        return norm

    @torch.no_grad()
    def step(
        self,
        gradient_scale: float | Tensor = 1.0,
        *,
        learning_rate: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """gradient_scale: what every gradient is divided by first, to clip it.

        Where the host does not look before the step, all are tensors of the device, [] f32:
        learning_rate in place of the attribute, and skip, where 1 leaves parameters and moments
        alone (the count of steps still goes up).
        """
        scale = gradient_scale if isinstance(gradient_scale, Tensor) else None
        if scale is None and gradient_scale != 1.0:
            scale = torch.tensor(gradient_scale, device=self.steps[0].device)
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            [_as_it_lies(p) for p in self.parameters],
            [_as_it_lies(g) for g in self.gradients],
            [_as_it_lies(m) for m in self.first_moments],
            [_as_it_lies(m) for m in self.second_moments],
            [],
            self.steps,
            lr=self.learning_rate if learning_rate is None else learning_rate,
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
            found_inf=skip,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The moments and steps themselves, by `PARAMETER.NAME`."""
        return {
            f"{index}.{name}": tensor
            for name, tensors in self._state().items()
            for index, tensor in enumerate(tensors)
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Copies. Raises KeyError or RuntimeError when they do not fit."""
        for name, mine in self.state_dict().items():
            mine.copy_(tensors[name])

    def _state(self) -> dict[str, list[Tensor]]:
        return {
            "exp_avg": self.first_moments,
            "exp_avg_sq": self.second_moments,
            "step": self.steps,
        }


def _as_it_lies(tensor: Tensor) -> Tensor:
    """Its numbers in the order of their addresses. The kernel takes them as they come, but copies
    what is not in the order of its indices, there and back."""
    return tensor.as_strided((tensor.numel(),), (1,))
