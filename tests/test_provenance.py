"""What a record says of the code, the machine and the libraries that it comes from."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from common import provenance


def git(folder: Path, *words: str) -> str:
    """In this folder only, whatever repository, hook or configuration the tests are run from."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    mine |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=a", "-c", "user.email=b"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, env=mine, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_checkouts_commit_is_told_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "somebody else's"))  # as hooks have it
    git(tmp_path, "init", "-q")
    (tmp_path / "code").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "c")
    commit = git(tmp_path, "rev-parse", "HEAD")
    os.utime(tmp_path / "code", (0, 0))  # what git would note in its index
    index = (tmp_path / ".git" / "index").read_bytes()
    assert commit.startswith(provenance.commit(tmp_path))
    assert (tmp_path / ".git" / "index").read_bytes() == index
    (tmp_path / "code").write_text("2")
    assert provenance.commit(tmp_path).endswith("-dirty")
    installed = tmp_path / "site-packages"  # in somebody else's checkout
    installed.mkdir()
    assert provenance.commit(installed) == "unknown"


def test_where_there_is_no_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(tmp_path) == "unknown"


def test_a_record_names_code_machine_and_libraries() -> None:
    told = provenance.provenance()
    assert set(told) == {"version", "commit", "machine", "gpu", "torch", "python"}
    assert all(told.values()) and told["gpu"] == "none"
    assert " cores of " in told["machine"]
