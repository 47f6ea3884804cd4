"""The quick form of every drill; `python -m tests.drills` is the long one."""

from pathlib import Path

import pytest

from tests.drills import DRILLS


@pytest.mark.parametrize("name", DRILLS)
@pytest.mark.timeout(230, method="signal")  # so that what was started is ended too
def test_drill(name: str, tmp_path: Path) -> None:
    assert DRILLS[name](tmp_path, False)
