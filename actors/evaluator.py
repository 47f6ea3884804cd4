"""Greedy full games on games of their own: what a policy is worth without exploration."""

import contextlib
import itertools
from collections.abc import Callable

import numpy as np
import torch

from actors.game import NOOP, Game, game_for, game_seed, idle_env_steps
from actors.observations import Observations
from actors.policy import epsilon_greedy
from common.config import EVALUATION, MOST_IDLE_ENV_STEPS
from common.policy_file import Policy


def evaluate(
    policy: Policy, games: int, seed: int, every_step: Callable[[], None] = lambda: None
) -> list[float]:
    """Raw scores of so many whole games, as the policy was trained to play them.

    Pong is deterministic: without a random start all greedy games would be the same one. So each
    begins with 0 to 30 env steps of doing nothing. (No-ops of single frames would also shift the
    phase of the frame skip, which a policy trained without them has never seen.) A game that is not
    Atari begins as its seed has it: action 0 may be a move there. All games run side by side and
    each is played once, so short games are not favoured.

    every_step: called as often as that, and before each game is made; what it raises ends the
    games.
    """
    seeds = np.random.SeedSequence([seed, EVALUATION]).spawn(games + 1)
    rng = np.random.default_rng(seeds[-1])
    running: list[Game] = []
    seen = Observations(games)
    with contextlib.ExitStack() as ending:
        ending.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        for i in range(games):
            every_step()
            first_seed = game_seed(seeds[i])
            game = game_for(policy.config, first_seed)
            ending.callback(game.close)
            seen.begin(i, game.reset(first_seed))
            running.append(game)
        return _played(policy, running, seen, rng, every_step)


def _played(
    policy: Policy,
    games: list[Game],
    seen: Observations,
    rng: np.random.Generator,
    every_step: Callable[[], None],
) -> list[float]:
    """Their scores, when all that have begun are over."""
    scores = np.zeros(len(games))
    alive = np.arange(len(games))
    idle = np.array([idle_env_steps(game, MOST_IDLE_ENV_STEPS, rng) for game in games])
    for env_step in itertools.count():
        every_step()
        actions = epsilon_greedy(policy.network, seen.obs[alive], 0.0, rng)
        actions[env_step < idle[alive]] = NOOP
        playing = [(i, games[i]) for i in alive.tolist()]
        steps = [g.step(a) for (_, g), a in zip(playing, actions.tolist(), strict=True)]
        over = []
        for (i, game), step in zip(playing, steps, strict=True):
            if step.terminated and not game.scores:  # a life lost: as in training, a new stack
                seen.begin(i, game.reset())
                idle[i] = 0
            else:
                seen.push(i, game.frame())
            if game.scores:
                scores[i] = game.scores[0]
                over.append(i)
        alive = np.setdiff1d(alive, over)
        if not len(alive):
            break
    return scores.tolist()
