"""Greedy full games on games of their own: what a policy is worth without exploration."""

import itertools

import numpy as np
import torch

from actors.game import NOOP, Game, game_for, game_seed, idle_env_steps
from actors.observations import Observations
from actors.policy import epsilon_greedy
from common.config import EVALUATION, MOST_IDLE_ENV_STEPS
from common.policy_file import Policy


def evaluate(policy: Policy, games: int, seed: int) -> list[float]:
    """Raw scores of so many whole games, as the policy was trained to play them.

    Pong is deterministic: without a random start all greedy games would be the same one. So each
    begins with 0 to 30 env steps of doing nothing. (No-ops of single frames would also shift the
    phase of the frame skip, which a policy trained without them has never seen.) A game that is not
    Atari begins as its seed has it: action 0 may be a move there. All games run side by side and
    each is played once, so short games are not favoured.
    """
    torch.set_num_threads(1)
    config = policy.config
    seeds = np.random.SeedSequence([seed, EVALUATION]).spawn(games + 1)
    rng = np.random.default_rng(seeds[-1])
    running: list[Game] = []
    seen = Observations(games)
    for i in range(games):
        first_seed = game_seed(seeds[i])
        game = game_for(config, first_seed)
        seen.begin(i, game.reset(first_seed))
        running.append(game)
    scores = np.zeros(games)
    alive = np.arange(games)
    idle = np.array([idle_env_steps(game, MOST_IDLE_ENV_STEPS, rng) for game in running])
    for env_step in itertools.count():
        actions = epsilon_greedy(policy.network, seen.obs[alive], 0.0, rng)
        actions[env_step < idle[alive]] = NOOP
        playing = [(i, running[i]) for i in alive.tolist()]
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
    for game in running:
        game.close()
    return scores.tolist()
