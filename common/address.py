"""Where the learner listens: a private socket file, or what --bind says."""

import contextlib
import ipaddress
import os
import re
import stat
from pathlib import Path

from common.config import Config
from common.errors import ConfigError

_SOCKET = "learner.sock"
_IPC_PATH_LIMIT = 100  # sun_path holds 107 bytes; leave room for libzmq's suffixes


def check_bind(bind: str, keys: str) -> None:
    """Raises ConfigError unless `bind` is an address that actors can find, and only they.

    Anything that other machines can reach needs keys.
    """
    if not bind:
        return
    match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:.]+\]|[0-9.]+|\*|localhost):(\d+)", bind)
    host = _ip_address(match[1]) if match else None
    if not match or not host or not 0 < int(match[2]) < 65536:
        raise ConfigError(
            f"--bind is {bind!r}, expected tcp://ADDRESS:PORT with an IP address, * or localhost, "
            "and a port of 1 to 65535, for example tcp://127.0.0.1:5555."
        )
    if not host.is_loopback and not keys:
        raise ConfigError(
            f"--bind {bind} can be reached from other machines: make keys with "
            "`launch.py keys FOLDER` and pass --keys FOLDER."
        )


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None where it is none: ZeroMQ would take it for a network interface, whose name no actor
    can connect to."""
    meaning = {"*": "0.0.0.0", "localhost": "127.0.0.1"}
    try:
        return ipaddress.ip_address(meaning.get(host, host.strip("[]")))
    except ValueError:
        return None


def remove_socket(run_dir: Path) -> None:
    """The socket file of a learner that could not do it itself."""
    with contextlib.suppress(OSError):  # a disk that is gone takes it along
        (run_dir / "ipc" / _SOCKET).unlink()


def ipc_endpoint(folder: Path) -> str:
    """ipc address of the socket file in `folder`, which becomes private (0700).

    A socket's path is limited to 107 bytes; a longer one is reached through /proc/self/fd.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:  # a read-only disk refuses that too
        folder.chmod(0o700)
    path = folder / _SOCKET
    if len(os.fsencode(path)) > _IPC_PATH_LIMIT:
        if not Path("/proc/self/fd").is_dir():
            raise ConfigError(
                f"The run folder's path is too long for a socket ({path}): choose --bind "
                "tcp://127.0.0.1:5555, or for a new run another --run-dir."
            )
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        path = Path(f"/proc/self/fd/{descriptor}/{_SOCKET}")
    return f"ipc://{path}"


def endpoint(config: Config, run_dir: Path) -> str:
    """Where the learner listens."""
    # ZeroMQ looks up no names of where it is to listen.
    return config.bind.replace("//localhost:", "//127.0.0.1:") or ipc_endpoint(run_dir / "ipc")


def connect_endpoint(config: Config, run_dir: Path) -> str:
    """Where this machine's actors find the learner; a wildcard host means this machine too."""
    address = endpoint(config, run_dir)
    for wildcard, here in (("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")):
        address = address.replace(f"//{wildcard}:", f"//{here}:")
    return address
