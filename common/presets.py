"""The presets: named starting values of a configuration, and the one way to make one."""

import difflib
from collections.abc import Iterable
from typing import Any

from common.config import OUT_OF_REACH, Config
from common.errors import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    "pong": {},
    # Fewest env steps: each is trained on eight times.
    "pong-frugal": {
        "envs_per_actor": 8,
        "samples_per_insert": 8.0,
        "samples_per_insert_mastered": 0.0,
        "learning_starts_transitions": 4_000,
        "epsilon_final": 0.01,
        "epsilon_decay_env_steps": 40_000,
        "idle_max_env_steps": 0,
        "learning_rate": 3e-4,
        "learning_rate_final": 0.0,
        "target_sync_period_updates": 500,
        "policy_average_updates": 0,
    },
    # The reference program's numbers: one game, one update per env step.
    "book": {
        "confirm_games": 0,
        "actors": 1,
        "envs_per_actor": 1,
        "chunk_transitions": 16,
        "epsilon_final": 0.02,
        "epsilon_decay_env_steps": 100_000,
        "idle_max_env_steps": 0,
        "n_step": 1,
        "replay_transitions": 10_000,
        "learning_starts_transitions": 10_000,
        "prioritized": False,
        "samples_per_insert": 32.0,
        "samples_per_insert_mastered": 0.0,
        "network": "nature",
        "precision": "float32",
        "standardize": False,
        "loss": "mse",
        "learning_rate": 1e-4,
        "learning_rate_final": 0.0,
        "max_grad_norm": 0.0,
        "target_sync_period_updates": 1_000,
        "publish_period_updates": 8,
        "policy_average_updates": 0,
    },
    "atari": {
        "noop_max": 30,
        "episodic_life": True,
        "clip_rewards": True,
        "reward": OUT_OF_REACH,
        "epsilon_final": 0.01,
        "epsilon_decay_env_steps": 1_000_000,
        "idle_max_env_steps": 0,
        "n_step": 3,
        "network": "nature",
        "dueling": True,
        "double": True,
        "replay_transitions": 1_000_000,
        "learning_starts_transitions": 50_000,
        "learning_rate": 1e-4,
        "learning_rate_final": 0.0,
        "adam_epsilon": 1.5e-4,
        "samples_per_insert": 8.0,
        "samples_per_insert_mastered": 0.0,
        "target_sync_period_updates": 2_000,
        "policy_average_updates": 0,
    },
}


def make_config(preset: str, **overrides: Any) -> Config:
    """A preset with some fields replaced. Raises ConfigError naming what is wrong."""
    if preset not in PRESETS:
        raise ConfigError(
            f"Unknown preset {preset!r}{did_you_mean(preset, PRESETS)}; "
            f"the presets are {', '.join(PRESETS)}."
        )
    return Config(**{"preset": preset, **PRESETS[preset], **overrides})


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """', did you mean a or b' for the closest of the known words, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(close)}" if close else ""
