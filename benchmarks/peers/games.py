"""Wrapped Pong by others: 84x84 grey frames, four stacked, four emulator frames per env step.

Each maker imports its library itself: one that is missing costs its own row only.
"""

from typing import Any

import numpy as np

from benchmarks.measure import Side, Step, steadily

ACTIONS = 6  # of Pong
CALLS = 64  # steps of all games between two looks at the clock


def actions(games: int) -> np.ndarray:
    """[CALLS, games] i64, the same ones each time."""
    return np.random.default_rng(0).integers(ACTIONS, size=(CALLS, games))


def gymnasium_game() -> Any:
    """gymnasium's own wrappers, as its documentation puts them together."""
    import ale_py
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    gymnasium.register_envs(ale_py)
    game = gymnasium.make("PongNoFrameskip-v4")
    return FrameStackObservation(AtariPreprocessing(game, noop_max=0), 4)


def gymnasium_wrappers() -> dict[str, Side]:
    game, chosen = gymnasium_game(), actions(1)[:, 0].tolist()
    game.reset(seed=0)

    def play() -> int:
        for action in chosen:
            _, _, terminated, truncated, _ = game.step(action)
            if terminated or truncated:
                game.reset()
        return CALLS

    return {"play": steadily(play)}


def ale_vector(games: int) -> dict[str, Side]:
    """ale-py's C++ vector environment on one thread."""
    from ale_py.vector_env import AtariVectorEnv

    vector = AtariVectorEnv("pong", games, num_threads=1, noop_max=0, reward_clipping=False)
    return {"play": steadily(playing(vector, games))}


def envpool_vector(games: int) -> dict[str, Side]:
    """EnvPool on one thread."""
    import envpool

    vector = envpool.make_gymnasium(
        "Pong-v5", num_envs=games, batch_size=games, num_threads=1, noop_max=1
    )
    return {"play": steadily(playing(vector, games))}


def playing(vector: Any, games: int) -> Step:
    """Steps of a vector environment that resets by itself; a reset counts as a step."""
    chosen = actions(games)
    vector.reset()

    def play() -> int:
        for row in chosen:
            vector.step(row)
        return CALLS * games

    return play
