"""The side that learns: replay, limiter, DQN, checkpoints."""
