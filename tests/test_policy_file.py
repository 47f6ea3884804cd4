"""A policy file: what it holds comes back, and anything else is refused in a sentence."""

import math
from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from common.network import network_for
from common.policy_file import load_policy, mean_score_of, save_policy
from tests.builders import config


def test_a_policy_comes_back_with_its_configuration(tmp_path: Path) -> None:
    path, settings = tmp_path / "best.safetensors", config(run_dir="/somewhere")
    network = network_for(settings)
    save_policy(path, network, settings, {"mean_score_100": 19.54, "games": 255})
    policy = load_policy(path)
    assert policy.config == config(run_dir="")
    for name, tensor in network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], tensor)
    assert mean_score_of(path) == 19.54
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("about", [{"mean_score_100": 21.0, "games": 99}, {}])
def test_a_mean_of_too_few_games_is_none(tmp_path: Path, about: dict[str, float]) -> None:
    save_policy(tmp_path / "p.safetensors", network_for(config()), config(), about)
    assert mean_score_of(tmp_path / "p.safetensors") == -math.inf
    assert mean_score_of(tmp_path / "no such file") == -math.inf


def test_what_is_not_a_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    for content in (b"", b"junk" * 100):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not a policy of this version"):
            load_policy(path)
