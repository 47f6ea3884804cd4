"""The peers' own virtual environment: made when it is first needed, never ours."""

import functools
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.measure import NotMeasured

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def default_folder() -> Path:
    """Below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "volley" / "peers"


class Peers:
    """Where the peers live."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def python(self) -> str:
        """Path of the environment's interpreter. Raises NotMeasured when none can be made.

        Packages are installed one by one, in the file's order: a peer that cannot be had does not
        take the others with it, and is missed where its row imports it.
        """
        python = self.folder / "bin" / "python"
        wanted, installed = REQUIREMENTS.read_text(), self.folder / "installed.txt"
        if installed.exists() and installed.read_text() == wanted:
            return str(python)
        print(f"Installing the peers into {self.folder} (once, some minutes) ...", file=sys.stderr)
        try:
            venv.create(self.folder, with_pip=True)
            failed = [one for one in wanted.split() if not install(str(python), one)]
            if not failed:
                installed.write_text(wanted)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotMeasured(f"no environment for the peers in {self.folder}: {error}") from None
        return str(python)


def install(python: str, requirement: str) -> bool:
    pip = [python, "-m", "pip", "install", "-q", "-c", str(REQUIREMENTS), requirement]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        print(f"{requirement} cannot be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return done.returncode == 0
