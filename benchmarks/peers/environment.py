"""The peers' own virtual environment: made when it is first needed, never ours."""

import functools
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from benchmarks.measure import NotMeasured
from benchmarks.worker import Worker

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def default_folder() -> Path:
    """Below the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "volley" / "peers"


class Peers:
    """Where the peers live."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def python(self) -> str:
        """Path of the environment's interpreter. Raises NotMeasured when none can be made."""
        if self._problem:
            raise NotMeasured(self._problem)
        return str(self.folder / "bin" / "python")

    def start(self, maker: str, **options: Any) -> Worker:
        """A worker of `module:function` in this folder's package. Raises NotMeasured."""
        return Worker(f"benchmarks.peers.{maker}", python=self.python, **options)

    @functools.cached_property
    def _problem(self) -> str:
        """Make the environment unless it is there. -> why it cannot be made, or nothing.

        Packages are installed one by one, in the file's order: a peer that cannot be had does not
        take the others with it, and is missed where its row imports it.
        """
        python, mark = self.folder / "bin" / "python", self.folder / "volley-peers.txt"
        wanted = REQUIREMENTS.read_text()
        ready = f"{wanted}# for Python {platform.python_version()}\n"
        if mark.exists() and mark.read_text() == ready and python.exists():
            return ""
        if self.folder.exists() and not mark.exists():
            return f"{self.folder} is there already, and not an environment of the peers"
        print(f"Installing the peers into {self.folder} (once, some minutes) ...", file=sys.stderr)
        try:
            if self.folder.exists():  # of another interpreter, or of other versions
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            mark.write_text("")  # ours, and not complete
            venv.create(self.folder, with_pip=True)
            failed = [one for one in wanted.split() if not install(str(python), one)]
            if not failed:
                mark.write_text(ready)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no environment for the peers in {self.folder}: {error}"
        return ""


def install(python: str, requirement: str) -> bool:
    pip = [python, "-m", "pip", "install", "-q", "-c", str(REQUIREMENTS), requirement]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        print(f"{requirement} cannot be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return done.returncode == 0
