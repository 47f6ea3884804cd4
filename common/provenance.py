"""What a record says of where it comes from: code, machine, libraries."""

import platform
import subprocess
from pathlib import Path

import torch

from common.config import VERSION
from common.machine import cores

ROOT = Path(__file__).parent.parent


def provenance(device: str = "cpu") -> dict[str, str]:
    """device: the GPU is named where it is one."""
    return {
        "version": VERSION,
        "commit": commit(),
        "machine": f"{cores()} cores of {processor()}",
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit(root: Path = ROOT) -> str:
    """Of this code, `-dirty` where it was changed since; "unknown" outside a checkout of it."""
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return (done.stdout.strip() if (root / ".git").exists() else "") or "unknown"


def processor() -> str:
    """Its name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
