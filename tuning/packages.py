"""What program and tests need as one archive, for a machine that has torch, Numba and no network.

What may travel there is 64 MiB. OpenCV's wheel alone has 71, without its windows 58; with the
others that would be 75. Unpacked and compressed by a method that knows x86 code, all has 55; what
Numba compiles with would be another 40.
"""

import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from common.errors import UserError

ROOT = Path(__file__).parent.parent
LOCKS = (ROOT / "requirements.lock", ROOT / "requirements-dev.lock")
ARCHIVE = "packages.tar.xz"
MOST_MIB = 56  # the rest of the 64 is for the code
PRESENT = frozenset(  # there: torch, numpy, what torch requires, and Numba
    {
        "torch",
        "numpy",
        "numba",
        "llvmlite",
        "filelock",
        "fsspec",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
    }
    | {"setuptools", "sympy", "typing-extensions"}
)
ONLY_FOR_VIEWING = frozenset({"grpcio", "markdown", "tensorboard-data-server", "werkzeug"})
ONLY_FOR_DEVELOPING = frozenset(
    {"mypy", "mypy-extensions", "ast-serialize", "librt", "pathspec", "ruff"}
)
SMALLER = {"opencv-python": "opencv-python-headless"}  # the same cv2 without its windows
_TAGS = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12")  # pip takes each exactly as named
_FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]


class PackError(UserError):
    """The archive could not be made."""


def pack(folder: Path, python: str) -> Path:
    """Download and archive the locked versions for CPython `python` (e.g. 3.12), Linux x86-64.

    Takes some minutes. Raises PackError when pip fails or the archive is too large to travel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / ARCHIVE
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch)
        _download(site, python)
        with (
            lzma.open(archive, "wb", filters=_FILTERS) as compressed,
            tarfile.open(fileobj=compressed, mode="w|") as tar,
        ):
            for path in sorted(site.iterdir()):
                tar.add(path, path.name)
    mib = archive.stat().st_size / 2**20
    if mib > MOST_MIB:
        raise PackError(f"{archive} has {mib:.1f} MiB, more than the {MOST_MIB} that may travel.")
    print(f"{archive}: {mib:.1f} MiB for Python {python}")
    return archive


def locked_versions() -> list[str]:
    """name==version of every package that has to travel."""
    lines = [line for lock in LOCKS for line in lock.read_text().splitlines()]
    versions = dict(line.split("==") for line in lines if "==" in line)
    stay = PRESENT | ONLY_FOR_VIEWING | ONLY_FOR_DEVELOPING
    names = [name for name in versions if name not in stay]
    return [f"{SMALLER.get(name, name)}=={versions[name]}" for name in names]


def _download(site: Path, python: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--only-binary=:all:", "--python-version", python, "--target", str(site)]
    for tag in _TAGS:
        command += ["--platform", f"manylinux_{tag}_x86_64"]
    command += ["--platform", "manylinux2014_x86_64"]
    done = subprocess.run([*command, *locked_versions()], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise PackError(f"pip failed: {done.stderr.strip()}")


def environment_with(archive: Path, site: Path) -> dict[str, str]:
    """Unpacks into `site`. -> this process's environment in which Python finds what is there.

    Raises PackError when there is no such archive.
    """
    try:
        with tarfile.open(archive, "r:xz") as tar:
            tar.extractall(site, filter="data")
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise PackError(f"{archive} is not what `pack` makes: {error}") from None
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
