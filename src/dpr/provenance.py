"""Where a result comes from: the commit of the code and the machine."""

import os
import platform
import subprocess
from pathlib import Path


def git_commit() -> str:
    """The current commit's short hash, with `+` if src/ has uncommitted changes; `unknown` outside git."""
    try:
        root = _git("rev-parse", "--show-toplevel")
        changed = _git("-C", root, "status", "--porcelain", "--", "src")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    """Run git with these arguments and return what it prints."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def hardware() -> str:
    """One line with the processor's name, its number of cores and, if torch sees one, the GPU's name."""
    import torch

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}"
