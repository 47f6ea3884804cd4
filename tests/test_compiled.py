"""Compiled functions: the same results, wherever their machine code can be kept."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.compiled import compiled

ROOT = Path(__file__).parent.parent
SUM = """
import numpy as np
from common.compiled import compiled


@compiled
def total(values):
    found = 0.0
    for value in values:
        found += 2 * value
    return found
"""


def total_in_another_process(folder: Path, before: str = "pass", **environment: str) -> str:
    """What it says, the function's source lying in `folder`."""
    (folder / "kept.py").write_text(SUM)
    code = f"import numpy as np, resource, kept; {before}; print(kept.total(np.arange(4.0)))"
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or done.stderr


def test_what_was_compiled_is_kept_beside_the_source(tmp_path: Path) -> None:
    assert total_in_another_process(tmp_path) == "12.0"
    assert list((tmp_path / "__pycache__").glob("kept.total*.nbi"))
    assert total_in_another_process(tmp_path) == "12.0"


@pytest.mark.parametrize("of", ["index", "code"])
def test_it_is_compiled_again_where_what_was_kept_is_cut_short(tmp_path: Path, of: str) -> None:
    total_in_another_process(tmp_path)
    (kept,) = (tmp_path / "__pycache__").glob("kept.total*.nb" + of[0])
    whole = kept.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], bytes(len(whole))):
        kept.write_bytes(damaged)
        assert total_in_another_process(tmp_path) == "12.0"


@pytest.mark.parametrize(
    "trouble",
    [
        {"NUMBA_CACHE_DIR": "/proc/none"},  # nowhere to keep it
        {"before": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"},  # as on a full disk
    ],
)
def test_it_is_compiled_even_where_nothing_can_be_kept(
    tmp_path: Path, trouble: dict[str, str]
) -> None:
    assert total_in_another_process(tmp_path, **trouble) == "12.0"


def test_a_compiled_function_keeps_its_name_and_gives_what_it_gave() -> None:
    def double(values: np.ndarray) -> float:
        total = 0.0
        for value in values:
            total += 2 * value
        return total

    by_numba = compiled(double)
    for _ in range(2):
        assert by_numba(np.arange(4.0)) == double(np.arange(4.0)) == 12.0
    assert by_numba.__name__ == "double"


def test_to_know_a_game_takes_no_compiler() -> None:
    code = (
        "import sys; from actors.game import make_game; "
        "print(make_game('PongNoFrameskip-v4').n_actions, 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "6 False\n", done


def test_what_a_compiled_function_raises_comes_through() -> None:
    def refuse(value: float) -> float:
        if value < 0:
            raise ValueError("no root")
        return value**0.5

    with pytest.raises(ValueError, match="no root"):
        compiled(refuse)(-1.0)
