"""Schedules of exploration and of the step size: pure functions."""

from common.config import Config


def epsilon_of(config: Config, actor_id: int, env_steps: int) -> float:
    """Epsilon of one actor when all actors together have taken `env_steps`."""
    if config.epsilon_ladder:
        actors = max(config.actor_count, 1)  # those that come later play as the last of these
        return ladder_epsilon(min(actor_id, actors - 1), actors)
    return linear_epsilon(
        env_steps, config.epsilon_start, config.epsilon_final, config.epsilon_decay_env_steps
    )


def linear_epsilon(env_steps: int, start: float, final: float, decay_env_steps: int) -> float:
    """max(final, start - env_steps / decay_env_steps), the form of the reference program.

    A straight line that loses 1 per `decay_env_steps` env steps (counted over all actors) and is
    cut off at `final`.
    """
    return float(max(final, start - env_steps / decay_env_steps))


def ladder_epsilon(actor_id: int, actors: int, base: float = 0.4, exponent: float = 7.0) -> float:
    """Constant epsilon of actor i of N: base ^ (1 + exponent * i / (N - 1)).

    Ape-X (Horgan et al. 2018, section 4.1). A single actor gets `base`.
    """
    return float(base ** (1.0 + exponent * actor_id / max(actors - 1, 1)))


def learning_rate_of(config: Config, progress: float) -> float:
    """Adam's step size when the scores are so far on their way to mastery (0 to 1)."""
    if not config.learning_rate_final:
        return config.learning_rate
    return config.learning_rate + progress * (config.learning_rate_final - config.learning_rate)
