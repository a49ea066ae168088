"""Run every benchmark script at its smallest size, one after the other.

    python -m benchmarks.smoke [NAME ...]

NAME selects scripts (`scale.growth`). Prints one line a script with its seconds. The output of a script is shown only
when it fails; a failure does not stop the others, but the exit code is then 1. Scripts in `benchmarks/gpu` are skipped
without a GPU.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.common import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
FOLDERS = ("scale", "quality", "gpu")
# Modules directly in `benchmarks` that measure nothing.
NOT_SCRIPTS = ("__init__", "common", "smoke")


def scripts() -> list[str]:
    """Module names of all scripts, without the prefix `benchmarks`."""
    paths = sorted(path for path in FOLDER.glob("*.py") if path.stem not in NOT_SCRIPTS)
    for folder in FOLDERS:
        paths += sorted((FOLDER / folder).glob("*.py"))
    return [".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in paths]


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def main() -> None:
    failed = []
    for name in sys.argv[1:] or scripts():
        if name.startswith("gpu.") and not has_gpu():
            print(f"{name:<28} skipped: needs a GPU", flush=True)
            continue
        started = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--smoke"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        seconds = time.monotonic() - started
        if process.returncode:
            print(process.stdout)
            failed.append(name)
        result = f" failed with exit code {process.returncode}" if process.returncode else ""
        print(f"{name:<28} {seconds:6.0f} s{result}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
