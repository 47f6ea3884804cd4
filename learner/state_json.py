"""A checkpoint's state.json: plain values, and bytes and arrays as base64."""

import base64
import json
from typing import Any

import numpy as np

from common.errors import ConfigError

_PLAIN_KINDS = "biufcmMSU"  # of NumPy's dtypes: their bytes are all there is to them


def check_saves(player: dict[str, Any]) -> None:
    """Raises ConfigError where a checkpoint cannot hold the state of lock-step's player."""
    try:
        to_json(player)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The game cannot be saved, as lock-step does: {error}; its get_state() must give "
            "plain numbers, strings, bytes, arrays, lists and dicts whose keys are strings."
        ) from None


def to_json(state: dict[str, Any]) -> bytes:
    """Raises TypeError or ValueError where something in it would not come back as it was."""

    def encode(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"base64": base64.b64encode(value).decode()}
        if type(value) is np.ndarray and value.dtype.kind in _PLAIN_KINDS:
            content = base64.b64encode(value.tobytes()).decode()
            return {"dtype": value.dtype.str, "shape": value.shape, "base64": content}
        raise TypeError(f"{type(value).__name__} does not belong in a checkpoint")

    content = json.dumps(state, default=encode).encode()
    _check_keys(state)  # after what refuses a state that contains itself
    return content


def from_json(content: bytes) -> Any:
    """The inverse of `to_json`, but for tuples, which come back as lists."""

    def decode(value: dict[str, Any]) -> Any:
        if "base64" not in value:
            return value
        raw = base64.b64decode(value["base64"])
        if "dtype" not in value:
            return raw
        array = np.frombuffer(raw, value["dtype"]).reshape(value["shape"])
        return array.copy()  # which may be written, as the game's own could be

    return json.loads(content, object_hook=decode)


def _check_keys(value: Any) -> None:
    """JSON would make a string of any other without a word, and `from_json` bytes of the one."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str) or key == "base64":
                raise TypeError(f"the key {key!r} does not belong in a checkpoint")
            _check_keys(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_keys(part)
