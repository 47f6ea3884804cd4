"""CURVE keys: who may talk to a learner that listens beyond this machine.

A key folder holds, made by `launch.py keys FOLDER`:
  learner.secret, learner.public      the learner's pair
  actor.secret, actor.public          the pair of its actors
  authorized/*.public                 the actors let in; to revoke a key, remove a file and restart
Secrets are created 0600 and refused when others can read them.
"""

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from common.errors import ConfigError

_DOMAIN = "volley"
_MECHANISMS_DIFFER = "one of them uses keys and the other does not: give both --keys, or neither"


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


class HandshakeWatch:
    """Tells why a connection is not let in; without it libzmq fails in silence.

    dealer: not yet connected; keys: does it use CURVE?
    """

    _RETRIES = 5  # a peer that just died looks like a learner with another key, once

    def __init__(self, dealer: Any, keys: bool) -> None:
        self._dealer, self._keys, self._failures = dealer, keys, 0
        self._monitor = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
        )

    def refusal(self, certain: bool) -> str:
        """The reason, for the user; empty while there is hope.

        certain: only what no bad link explains; for an actor that was let in before.
        """
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "its key is not among the learner's authorized/*.public"
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                return _MECHANISMS_DIFFER
            succeeded = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._failures = 0 if succeeded else self._failures + 1
            if self._failures >= self._RETRIES and not certain:
                if self._keys:
                    return "the learner does not hold the secret to our learner.public"
                # A learner with keys may hang up before its greeting is read.
                return f"what listens there is not a learner, or {_MECHANISMS_DIFFER}"
        return ""

    def close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close()


def create_keys(folder: Path) -> None:
    """Make both pairs and authorize the actor's. Raises ConfigError rather than overwrite."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: choose a new folder for the keys.")
        (folder / "authorized").mkdir(mode=0o755)  # whatever the umask: nobody else may add one
        for name in ("learner", "actor"):
            public, secret = zmq.curve_keypair()
            _write(folder / f"{name}.secret", secret, 0o600)
            _write(folder / f"{name}.public", public, 0o644)
            if name == "actor":
                _write(folder / "authorized" / "actor.public", public, 0o644)
    except OSError as error:
        raise ConfigError(f"Cannot make keys in {folder}: {error.strerror}.") from None


def load_learner_keys(folder: Path) -> LearnerKeys:
    """Raises ConfigError when they cannot be read, or when others could read or add to them."""
    try:
        public = sorted((folder / "authorized").glob("*.public"))
    except OSError as error:
        raise ConfigError(f"Cannot read the keys in {folder}: {error.strerror}.") from None
    for path in (folder, folder / "authorized", *public):
        if _mode(path) & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"Others can write {path}, and so let themselves in: look at who is authorized, "
                f"then chmod go-w {path}."
            )
    authorized = frozenset(_read(path) for path in public)
    return LearnerKeys(_read_secret(folder / "learner.secret"), authorized)


def load_actor_keys(folder: Path) -> ActorKeys:
    return ActorKeys(
        _read_secret(folder / "actor.secret"),
        _read(folder / "actor.public"),
        _read(folder / "learner.public"),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content + b"\n")


def _mode(path: Path) -> int:
    """Who may do what with it; 0 where that cannot be seen: reading it will say why."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _read(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"Cannot read the key {path}: {error.strerror}.") from None
    try:
        whole = len(key) == 40 and len(z85.decode(key)) == 32
    except (KeyError, struct.error):  # another character; five that mean more than 32 bits
        whole = False
    if not whole:
        raise ConfigError(f"{path} is not a CURVE key: expected 40 characters of Z85.")
    return key


def _read_secret(path: Path) -> bytes:
    if _mode(path) & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"Others can read the secret key {path}: make new ones with `launch.py keys FOLDER`, "
            "or chmod 600 it if nobody has."
        )
    return _read(path)
