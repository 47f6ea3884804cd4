"""The side that plays: games, epsilon-greedy policy, n-step chunks."""
