"""The DQN update: a pure loss, one gradient step, the target sync."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Config
from common.console import say
from common.errors import UserError
from common.network import network_for
from learner.adam import Adam
from learner.captured import CapturedStep
from learner.replay import TransitionBatch

_ADVICE = (
    "lower --learning-rate or set --max-grad-norm in a new run; this one can only go on as it was"
)


class NotFinite(UserError):
    """The loss or the weights are NaN or infinite; nothing good has been overwritten."""


def td_loss(
    online: nn.Module, target: nn.Module, batch: TransitionBatch, double: bool, loss: str
) -> tuple[Tensor, Tensor, Tensor]:
    """-> (loss [], td_error [B], q [B]), differentiable with respect to `online` only.

    y = n_step_return + discount * Q_target(next_obs, a*), Mnih et al. 2015 algorithm 1; a* is the
    target's own best action or, with `double`, the online network's (van Hasselt et al. 2016,
    eq. 4). The batch's `discount` is gamma^span, or 0 beyond a terminal. loss: "mse" or "huber"
    (threshold 1), weighted by `batch.weight` and averaged.
    """
    q = online(batch.obs).gather(1, batch.action[:, None]).squeeze(1)  # [B]
    with torch.no_grad():
        next_q = target(batch.next_obs)  # [B, A]
        chooser = online(batch.next_obs) if double else next_q
        best = chooser.argmax(dim=1, keepdim=True)
        y = batch.n_step_return + batch.discount * next_q.gather(1, best).squeeze(1)
    per_sample = F.mse_loss if loss == "mse" else F.smooth_l1_loss
    losses = per_sample(q, y, reduction="none")
    return (batch.weight * losses).mean(), (y - q).detach(), q.detach()


@dataclass(slots=True)
class UpdateStats:
    """Of one update."""

    loss: float
    q_mean: float
    grad_norm: float


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names start with prefix, which is removed."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


class Trainer:
    """Online and target network, optimizer, and the one way to move them."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.online, self.target = (network_for(config, device.type) for _ in range(2))
        for network in (self.online, self.target):
            network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.target.for_inference().requires_grad_(False)
        self.adam = Adam(self.online.parameters(), config.learning_rate, config.adam_epsilon)
        # What is played: the online network, or a smoothed copy of it.
        self.policy = self.online
        if config.policy_average_updates:
            self.policy = network_for(config, device.type).to(device).requires_grad_(False)
        self.updates = 0
        self._norm_limit = config.max_grad_norm or float("inf")
        self._captured = self._capture()
        self.sync_target()
        self.average_policy(share=1.0)

    def update(self, batch: TransitionBatch) -> tuple[UpdateStats, Tensor]:
        """`begin`, waited for. -> stats, td_error [B]."""
        return self.begin(batch)()

    def begin(self, batch: TransitionBatch) -> Callable[[], tuple[UpdateStats, Tensor]]:
        """One gradient step, and the target sync when it is due; a captured one is only launched.
        -> what waits for it, and gives stats and td_error [B].

        Raises NotFinite, here or there, when loss or gradient are not finite: this update has moved
        nothing then (where it is raised there, it is counted all the same).
        """
        number = self.updates + 1
        if self._captured:
            told = self._captured(batch, self.adam.learning_rate)

            def outcome() -> tuple[UpdateStats, Tensor]:
                figures_and_errors = told()
                return self._checked(figures_and_errors[:3], number), figures_and_errors[3:]
        else:
            figures, td_error = self._gradient(batch)
            stats = self._checked(figures, number)
            self.adam.step(max(1.0, stats.grad_norm / self._norm_limit))

            def outcome() -> tuple[UpdateStats, Tensor]:
                return stats, td_error

        self.updates = number
        if number % self.config.target_sync_period_updates == 0:
            self.sync_target()
        return outcome

    def _gradient(self, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """Of the loss, left with the parameters. -> loss, mean of q and gradient norm [3]; td_error
        [B]."""
        config = self.config
        loss, td_error, q = td_loss(self.online, self.target, batch, config.double, config.loss)
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.adam.gradient_norm()
        return torch.stack([loss.detach(), q.mean(), norm]), td_error

    def _step_on_device(self, batch: TransitionBatch, learning_rate: Tensor) -> Tensor:
        """The whole step without a question to the host. learning_rate: [] f32. -> [3 + B] f32."""
        figures, td_error = self._gradient(batch)
        loss, _, norm = figures
        self.adam.step(
            (norm / self._norm_limit).clamp(min=1.0),
            learning_rate=learning_rate,
            skip=(~torch.isfinite(loss + norm)).float(),
        )
        return torch.cat([figures, td_error])

    def _capture(self) -> CapturedStep | None:
        """The step as one launch, on a GPU that can."""
        if self.device.type != "cuda":
            return None
        mutated = [*self.online.parameters(), *self.adam.state_dict().values()]
        try:
            return CapturedStep(self._step_on_device, mutated, self.config.batch_size, self.device)
        except RuntimeError as error:
            cause = error.__context__ or error  # what ends the capture raises on top of it
            say(f"Updates are launched kernel by kernel, the GPU cannot capture them: {cause}")
            return None

    def sync_target(self) -> None:
        self.target.load_state_dict(self.online.state_dict())

    @torch.no_grad()
    def average_policy(self, share: float | None = None) -> None:
        """Move the policy towards the online network; called once per publish_period_updates.

        share: of the way; left out, what makes the policy an exponential average over about
        policy_average_updates updates.
        """
        if self.policy is self.online:
            return
        if share is None:
            periods = self.config.policy_average_updates / self.config.publish_period_updates
            share = 1.0 - math.exp(-1.0 / periods)
        online = self.online.state_dict()
        for name, tensor in self.policy.state_dict().items():
            tensor.lerp_(online[name], share)

    def standardize(self, frames: Tensor) -> None:
        """Set the input scaling of all networks from `frames` [F, 84, 84] u8.

        Measured on the CPU, wherever they lie: the same bits for every device.
        """
        self.online.standardize(frames.cpu())
        self.sync_target()
        self.average_policy(share=1.0)

    @property
    def is_captured(self) -> bool:
        """Is an update one launch on a GPU?"""
        return self._captured is not None

    @property
    def is_dead(self) -> bool:
        """Did no gradient of the last update reach the first layer? Then the units of some layer
        are silent for the whole batch (dying ReLU), and what is before it learns nothing of it."""
        gradient = self.online.get_parameter("first.bias").grad
        return gradient is not None and not gradient.any()

    def check_weights(self) -> None:
        """Raises NotFinite unless every parameter is finite; called before weights go anywhere."""
        for name, parameter in self.online.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NotFinite(f"{name} is not finite after update {self.updates}: {_ADVICE}.")

    @staticmethod
    def _checked(figures: Tensor, update: int) -> UpdateStats:
        stats = UpdateStats(*figures.tolist())
        for name, value in (("loss", stats.loss), ("gradient norm", stats.grad_norm)):
            if not abs(value) < float("inf"):
                raise NotFinite(f"The {name} is {value} at update {update}: {_ADVICE}.")
        return stats

    def _networks(self) -> dict[str, nn.Module]:
        """By the name that they have in a checkpoint."""
        networks: dict[str, nn.Module] = {"online": self.online, "target": self.target}
        return networks if self.policy is self.online else networks | {"policy": self.policy}

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything that a checkpoint needs, by name."""
        found: dict[str, Tensor] = {}
        for part, module in self._networks().items():
            found |= {f"{part}.{name}": t for name, t in module.state_dict().items()}
        found |= {f"adam.{name}": t for name, t in self.adam.state_dict().items()}
        return {name: t.detach().cpu().clone().contiguous() for name, t in found.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises KeyError or RuntimeError when they do not fit."""
        for part, module in self._networks().items():
            module.load_state_dict(with_prefix(tensors, part + "."))
        self.adam.load_state_dict(with_prefix(tensors, "adam."))
