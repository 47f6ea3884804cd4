"""A policy as a file: one network, the configuration that it needs, and what is known of it.

`best.safetensors` and `last.safetensors` of a run. The metadata holds strings only: `config` is the
run's config.json without what is of that run alone.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from common.config import OF_TRANSITIONS, VERSION, Config
from common.errors import ConfigError, Mismatch
from common.metrics import SOLVED_GAMES
from common.network import DQN, network_for
from common.run_folder import replace_file


def save_policy(path: Path, network: nn.Module, config: Config, about: dict[str, float]) -> None:
    """Replace the file atomically. about: numbers to keep, by name. Raises OSError."""
    tensors = {name: t.cpu().contiguous() for name, t in network.state_dict().items()}
    metadata = {
        "config": config.portable().to_json(),
        "version": VERSION,
        **{name: str(number) for name, number in about.items()},
    }
    replace_file(path, save(tensors, metadata))


@dataclass(frozen=True)
class Policy:
    """A network, ready to play, and the configuration that it was trained with."""

    network: DQN
    config: Config


def load_policy(path: Path) -> Policy:
    """Read a policy file, or a checkpoint's model.safetensors (its run's config.json beside).

    Raises ConfigError when the file is not a policy of ours, Mismatch when it is another version's
    and not all is known that play depends on, or does not fit its network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} is not a policy ({type(error).__name__}: {error}): expected the "
            "best.safetensors or last.safetensors of a run, or a folder of its checkpoints."
        ) from None
    if "config" in about:  # how it was trained beyond that may have been unknown then
        config = Config.from_json(about["config"], str(path), needed=OF_TRANSITIONS)
    else:
        of_its_run = path.absolute().parent.parent.parent / "config.json"
        if not of_its_run.exists():
            raise ConfigError(f"{path} is not a policy of ours: it has no configuration.")
        needed = (*OF_TRANSITIONS, "policy_average_updates")
        config = Config.from_file(of_its_run, needed)
        played = "policy." if config.policy_average_updates else "online."
        tensors = {n[len(played) :]: t for n, t in tensors.items() if n.startswith(played)}
    network = network_for(config)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        why = " ".join(str(error).split())  # what is missing, left over or of another shape
        raise Mismatch(f"{path} does not fit the network of its configuration: {why}") from None
    return Policy(network.for_inference(), config)


def mean_score_of(path: Path) -> float:
    """The mean of 100 games that a saved policy had; -inf where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        return float(about["mean_score_100"]) if int(about["games"]) >= SOLVED_GAMES else -math.inf
    except (OSError, SafetensorError, KeyError, ValueError):
        return -math.inf
