"""A GPU's way to update, without one."""

from collections.abc import Callable

from learner.captured import CapturedStep, Launch
from learner.dqn import Trainer


def as_on_a_gpu(trainer: Trainer, capture: Callable[[Launch], Launch] = lambda step: step) -> None:
    """Its updates go through the step that a GPU captures."""
    mutated = [*trainer.online.parameters(), *trainer.adam.state_dict().values()]
    trainer._captured = CapturedStep(
        trainer._step_on_device, mutated, trainer.config.batch_size, trainer.device, capture
    )
