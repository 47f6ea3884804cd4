"""What a record says of the code, the machine and the libraries that it comes from."""

import subprocess
from pathlib import Path

import pytest

from common import provenance


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=b"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_checkouts_commit_is_told_and_whether_it_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "code").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "c")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit.startswith(provenance.commit(tmp_path))
    (tmp_path / "code").write_text("2")
    assert provenance.commit(tmp_path).endswith("-dirty")
    installed = tmp_path / "site-packages"  # in somebody else's checkout
    installed.mkdir()
    assert provenance.commit(installed) == "unknown"


def test_where_there_is_no_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == "unknown"


def test_a_record_names_code_machine_and_libraries() -> None:
    told = provenance.provenance()
    assert set(told) == {"version", "commit", "machine", "gpu", "torch", "python"}
    assert all(told.values()) and told["gpu"] == "none"
    assert " cores of " in told["machine"]
