"""Where the learner listens: a private socket file, or what --bind says."""

import os
from pathlib import Path

from common.config import Config, ConfigError

_IPC_PATH_LIMIT = 100  # sun_path holds 107 characters; leave room for libzmq's suffixes


def ipc_endpoint(folder: Path) -> str:
    """ipc address of the socket file in `folder`, which becomes private (0700).

    A socket's path is limited to 107 characters; a longer one is reached through /proc/self/fd.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    path = folder / "learner.sock"
    if len(str(path)) > _IPC_PATH_LIMIT:
        if not Path("/proc/self/fd").is_dir():
            raise ConfigError(
                f"The run folder's path is too long for a socket ({path}): choose a shorter "
                "--run-dir, or --bind tcp://127.0.0.1:5555."
            )
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        path = Path(f"/proc/self/fd/{descriptor}/learner.sock")
    return f"ipc://{path}"


def connect_endpoint(config: Config, run_dir: Path) -> str:
    """Where this machine's actors find the learner; a wildcard host means this machine too."""
    address = endpoint(config, run_dir)
    for wildcard in ("//*:", "//0.0.0.0:"):
        address = address.replace(wildcard, "//127.0.0.1:")
    return address


def endpoint(config: Config, run_dir: Path) -> str:
    return config.bind or ipc_endpoint(run_dir / "ipc")
