"""The one that counts: the whole asynchronous pipeline learns a small pixel game."""

import json
from pathlib import Path

from tests.builders import CATCH
from tests.running import run


def test_the_pipeline_learns_catch_to_near_perfect_play(tmp_path: Path) -> None:
    code, output = run(
        *("--env", CATCH, "--actors", "1", "--envs-per-actor", "8", "--learner-threads", "1"),
        *("--network", "nips", "--gamma", "0.95", "--n-step", "3"),
        *("--replay-transitions", "20000", "--learning-starts-transitions", "1000"),
        *("--epsilon-decay-env-steps", "10000", "--epsilon-final", "0.01"),
        *("--samples-per-insert", "2", "--learning-rate", "5e-4"),
        *("--target-sync-period-updates", "100", "--publish-period-updates", "20"),
        *("--reward", "9", "--max-minutes", "4", "--seed", "1", "--run-dir", str(tmp_path)),
        timeout=290,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert code == 0, output
    assert result["solved"], output[-3000:]  # mean of 100 games above 9 of 10; random: about -7
    assert result["greedy_mean_score"] >= 9
    assert result["confirmed_seconds"] > result["wall_seconds"]
