"""What a record says of where it comes from: code, machine, libraries."""

import os
import platform
import subprocess
from pathlib import Path

from common.config import VERSION
from common.machine import cores

ROOT = Path(__file__).parent.parent
GIT_SECONDS = 5.0


def provenance(device: str = "cpu") -> dict[str, str]:
    """device: the GPU is named where it is one."""
    import torch  # not for who asks for a commit or a processor alone

    return {
        "version": VERSION,
        "commit": commit(),
        "machine": f"{cores()} cores of {processor()}",
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit(root: Path = ROOT) -> str:
    """Of this code, `-dirty` where it was changed since; "unknown" where git cannot tell."""
    if not (root / ".git").exists():  # or it would tell of whose checkout this is installed in
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *words],  # which leaves the index as it is
            cwd=root,
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def processor() -> str:
    """Its name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
