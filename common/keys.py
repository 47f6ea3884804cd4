"""CURVE keys: who may talk to a learner that listens beyond this machine.

A key folder holds, made by `launch.py keys FOLDER`:
  learner.secret, learner.public      the learner's pair
  actor.secret, actor.public          the pair of its actors; copy with learner.public to their host
  authorized/*.public                 the actors let in; remove a file to revoke a key
Secrets are created 0600 and refused when others can read them.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from common.config import ConfigError

_DOMAIN = "volley"


@dataclass(frozen=True)
class ActorKeys:
    """What an actor needs: its own pair and the learner's public key (Z85 bytes)."""

    secret: bytes
    public: bytes
    learner: bytes

    def apply(self, dealer: Any) -> None:
        dealer.curve_secretkey, dealer.curve_publickey = self.secret, self.public
        dealer.curve_serverkey = self.learner


@dataclass(frozen=True)
class LearnerKeys:
    """What the learner needs: its secret and the public keys it lets in."""

    secret: bytes
    authorized: frozenset[bytes]

    def start(self, context: Any) -> ThreadAuthenticator:
        """The ZAP handler. It must run before the socket binds: without one, CURVE admits any."""
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(_DOMAIN, credentials_provider=self)
        return authenticator

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by the authenticator for every connection; `key` is Z85."""
        return domain == _DOMAIN and key in self.authorized

    def apply(self, router: Any) -> None:
        router.curve_server = True
        router.curve_secretkey = self.secret
        router.zap_domain = _DOMAIN.encode()
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def create_keys(folder: Path) -> None:
    """Make both pairs and authorize the actor's. Raises ConfigError rather than overwrite."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: choose a new folder for the keys.")
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    (folder / "authorized").mkdir()
    for name in ("learner", "actor"):
        public, secret = zmq.curve_keypair()
        _write(folder / f"{name}.secret", secret, 0o600)
        _write(folder / f"{name}.public", public, 0o644)
        if name == "actor":
            _write(folder / "authorized" / "actor.public", public, 0o644)


def load_learner_keys(folder: Path) -> LearnerKeys:
    authorized = frozenset(_read(path) for path in sorted((folder / "authorized").glob("*.public")))
    return LearnerKeys(_read_secret(folder / "learner.secret"), authorized)


def load_actor_keys(folder: Path) -> ActorKeys:
    return ActorKeys(
        _read_secret(folder / "actor.secret"),
        _read(folder / "actor.public"),
        _read(folder / "learner.public"),
    )


def require_keys_beyond_loopback(address: str, keys: str) -> None:
    """Raises ConfigError when `address` can be reached from other machines and no keys are set."""
    host = address.removeprefix("tcp://").rpartition(":")[0]
    local = address.startswith("ipc://") or host in ("localhost", "[::1]") or host[:4] == "127."
    if not local and not keys:
        raise ConfigError(
            f"--bind {address} can be reached from other machines: make keys with "
            "`launch.py keys FOLDER` and pass --keys FOLDER."
        )


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content + b"\n")


def _read(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"Cannot read the key {path}: {error.strerror}.") from None
    if len(key) != 40:
        raise ConfigError(f"{path} is not a CURVE key: expected 40 characters of Z85.")
    return key


def _read_secret(path: Path) -> bytes:
    if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"Others can read the secret key {path}: chmod 600 it, or make new keys.")
    return _read(path)
