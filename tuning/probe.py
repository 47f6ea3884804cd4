"""Minutes instead of hours: how soon does a network learn to predict rewards from random play?

    python -m tuning.probe --variant standardize=true --variant standardize=false
    python -m tuning.probe --preset atari --env BreakoutNoFrameskip-v4 --variant ...

The trainer is the real one, input scaling, network, loss and Adam included. Only the bootstrap is
taken out of its batches (discount 0), so that the target is the n-step return itself. All variants
start from the same seed and take turns on the same batches. The loss that is printed is the same
for all, whatever a variant trains with: Huber's, with threshold 1, of the error before each update.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from actors.game import make_game
from actors.player import Player
from common import command_line
from common.config import Config
from common.errors import ConfigError, UserError
from learner.dqn import Trainer
from learner.learner import STANDARDIZE_FRAMES
from learner.replay import Replay, TransitionBatch, UniformSampler
from tuning.variants import Variant

WINDOW_UPDATES = 200
_OF_THE_DATA = ("env", "noop_max", "episodic_life", "clip_rewards", "n_step", "gamma", "batch_size")


def main(words: list[str]) -> int:
    given = flag_parser().parse_args(words)
    base = Variant("base", {"preset": given.preset, "env": given.env, "seed": str(given.seed)})
    variants = [Variant.parse(text) for text in given.variant] or [Variant("the preset")]
    torch.set_num_threads(given.threads)
    try:
        config = configuration(base, given.env_steps)
        configs = [configuration(variant.over(base), given.env_steps) for variant in variants]
        for variant, other in zip(variants, configs, strict=True):
            require_same_data(config, other, variant.name)
        replay = random_play(config, given.env_steps)
        print(f"{config.env}, n-step {config.n_step}: the loss of the best constant prediction is")
        print(f"{loss_of_a_constant(replay):.4f} over {len(replay):,} transitions of random play.")
        print("\n| updates | " + " | ".join(variant.name for variant in variants) + " |")
        print("|" + "---|" * (1 + len(variants)), flush=True)
        for updates, losses in learning(configs, replay, given.updates):
            cells = " | ".join(f"{loss:.4f}" for loss in losses)
            print(f"| {updates - WINDOW_UPDATES}-{updates} | {cells} |", flush=True)
    except UserError as error:
        print(f"probe: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def flag_parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="tuning.probe",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="pong")
    parser.add_argument("--env", default=Config().env)
    parser.add_argument("--variant", action="append", default=[], help="[name:]setting=value,...")
    parser.add_argument("--env-steps", type=int, default=10_000, help="of random play (10000)")
    parser.add_argument("--updates", type=int, default=1_200, help="of each variant (1200)")
    parser.add_argument("--seed", type=int, default=0, help="of play, weights and batches (0)")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def configuration(variant: Variant, env_steps: int) -> Config:
    """Complete, but for a replay that holds just the play. Raises ConfigError in a sentence."""
    config = command_line.parse(variant.flags()).config
    game = make_game(config.env)
    game.close()
    return dataclasses.replace(
        config,
        n_actions=game.n_actions,
        prioritized=False,
        learning_starts_transitions=config.batch_size,
        replay_transitions=2 * env_steps,  # chunks that an episode's end cuts short waste frames
    )


def require_same_data(base: Config, config: Config, name: str) -> None:
    """Raises ConfigError where a variant would need other transitions than the rest."""
    for setting in _OF_THE_DATA:
        if getattr(config, setting) != getattr(base, setting):
            raise ConfigError(f"Variant {name!r} changes {setting}: all must learn the same data.")


def random_play(config: Config, env_steps: int) -> Replay:
    """A replay of so many env steps of uniformly random actions."""
    replay = Replay(config, UniformSampler(np.random.default_rng([config.seed, 1])))
    player = Player(config, seed=[config.seed, 0])
    while len(replay) < env_steps:
        for chunk in player.step(epsilon=1.0):
            replay.add(chunk)
    player.close()
    return replay


def loss_of_a_constant(replay: Replay) -> float:
    """What predicting the mean return everywhere costs."""
    returns = torch.from_numpy(replay.transitions["n_step_return"][: len(replay)].copy())
    return F.smooth_l1_loss(returns.mean().expand_as(returns), returns).item()


def learning(
    configs: list[Config], replay: Replay, updates: int
) -> Iterator[tuple[int, list[float]]]:
    """After each window: updates so far, mean loss of every configuration over the window."""
    trainers = [new_trainer(config, replay) for config in configs]
    losses = np.zeros((len(trainers), WINDOW_UPDATES))
    for update in range(updates):
        batch = rewards_only(replay.sample(configs[0].batch_size)[0])
        for i, trainer in enumerate(trainers):
            _, error = trainer.update(batch)
            losses[i, update % WINDOW_UPDATES] = huber(error)
        if (update + 1) % WINDOW_UPDATES == 0:
            yield update + 1, losses.mean(axis=1).tolist()


def new_trainer(config: Config, replay: Replay) -> Trainer:
    """As the learner has it after the warm-up."""
    torch.manual_seed(config.seed)
    trainer = Trainer(config, torch.device("cpu"))
    if config.standardize:
        trainer.standardize(replay.spread_frames(STANDARDIZE_FRAMES))
    return trainer


def rewards_only(batch: TransitionBatch) -> TransitionBatch:
    """The same batch of which nothing but the n-step return is to be learned."""
    return dataclasses.replace(batch, discount=torch.zeros_like(batch.discount))


def huber(error: Tensor) -> float:
    return F.smooth_l1_loss(error, torch.zeros_like(error)).item()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
