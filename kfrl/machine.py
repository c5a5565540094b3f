"""Resources of this machine, the needs of a run, and the command that fixes a problem."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kfrl
from kfrl.errors import UserError
from kfrl.runs.provenance import commit

SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
SHARED_NEEDED = 64e6
"""Bytes of shared memory of a run of the paper's shape with one teacher of the student's size, rounded up."""
DISK_NEEDED = 1e9
"""Bytes on disk of a few runs of the paper's shape."""
PACKAGES = ("torch", "gymnasium", "ale-py", "numpy", "opencv-python-headless", "safetensors", "tensorboard", "scipy")
EXTRAS = {
    "huggingface-hub": "teachers from the Hub (hub:owner/repo/file) and kfrl push",
    "scikit-learn": "kfrl tabular and --data digits",
    "bokeh": "kfrl report",
    "wandb": "--log-to wandb",
    "mlflow-skinny": "--log-to mlflow",
    "onnx": "kfrl export --to onnx, with onnxscript and onnxruntime",
}
"""Optional packages, and the features that need them."""


@dataclass(frozen=True)
class Finding:
    """A fact about this machine, with the problem that it causes, if any."""

    name: str
    value: str
    problem: str = ""
    """A sentence on what does not work; empty if there is no problem."""
    fix: str = ""
    """The fix, a sentence or a command."""

    @property
    def warning(self) -> str:
        """The problem and its fix as one line."""
        return f"{self.name}: {self.value}. {self.problem} {self.fix}"


def cores() -> int:
    """The number of cores that this process may use: its affinity, or the quota of its container if that is lower."""
    return max(1, int(min(_seen_cores(), _quota())))


def _seen_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> float:
    """The container's quota of processor time, in cores; infinite without a limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def total_memory() -> float | None:
    """Bytes of memory that this process may use; None if the system does not tell."""
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(whole, float((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def peak_memory() -> float:
    """The largest number of bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def versions() -> Iterator[Finding]:
    """Versions of Python, of kfrl and of the packages that it uses."""
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    source = commit()
    yield Finding("kfrl", kfrl.__version__ + ("" if source == kfrl.__version__ else f", commit {source[:12]}"))
    for name in PACKAGES:
        found = _version(name)
        problem = ("It is not installed.", f"pip install {name}") if found is None else ()
        yield Finding(name, found or "missing", *problem)
    for name, use in EXTRAS.items():
        yield Finding(name, _version(name) or f"not installed; only for {use}: pip install {name}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> Finding:
    """The number of cores that are used."""
    seen, used = _seen_cores(), cores()
    return Finding("cores", str(used) if used == seen else f"{used} of {seen}, because a quota allows {_quota():g}")


def threads() -> Finding:
    """Threads of PyTorch in this process; a worker of a3c always uses one."""
    import torch

    held = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    count = torch.get_num_threads()
    value = f"{count} of PyTorch" + (f" ({', '.join(held)})" if held else "")
    if count <= cores():
        return Finding("threads", value)
    return Finding(
        "threads",
        value,
        f"There are only {cores()} cores, so a2c, ppo and image runs are slower than with {cores()} threads.",
        f"export OMP_NUM_THREADS={cores()}",
    )


def memory() -> Finding:
    """Memory that this process may use."""
    total = total_memory()
    return Finding("memory", "unknown" if total is None else size(total))


def shared_memory(needed: float = SHARED_NEEDED) -> Finding:
    """Shared memory, for a run that needs `needed` bytes of it."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return Finding("shared memory", f"this system has no {SHARED_MEMORY}; its own kind is used")
    value = f"{size(free)} free in {SHARED_MEMORY}"
    if free >= needed:
        return Finding("shared memory", value)
    return Finding(
        "shared memory",
        value,
        f"The workers of a run share about {size(needed)}; they would end with a bus error.",
        "Docker: docker run --shm-size=2g. Else, as root: mount -o remount,size=2G /dev/shm",
    )


def allow_open_files(needed: int, advice: str) -> None:
    """Raise this process's limit of open files to `needed`, if its user may.

    Raises:
        UserError: the user may not; `advice` is a sentence part that tells how to need fewer files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"This run opens about {needed} files, and this session may open {hard}. Raise the limit before the start "
            f"(ulimit -n {needed}, or nofile in /etc/security/limits.conf), or {advice}."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def disk(folder: Path, needed: float = DISK_NEEDED) -> Finding:
    """Free disk space for `folder`, for a run that writes `needed` bytes."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    value = f"{size(free)} free for {folder}"
    if not os.access(place, os.W_OK):
        return Finding("disk", value, f"{place} cannot be written to.", "Give another --run-dir.")
    if free >= needed:
        return Finding("disk", value)
    return Finding(
        "disk", value, f"That is less than {size(needed)}.", "Delete old checkpoint folders, or give another --run-dir."
    )


def gpus() -> Finding:
    """The GPUs that PyTorch can use."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("GPU", "; ".join(f"cuda:{index} {name}" for index, name in enumerate(names)))
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "none; everything runs on the CPU")
    if torch.version.cuda is None:
        return Finding(
            "GPU",
            f"there is a driver, but PyTorch {torch.__version__} is built for the CPU only",
            "--device cuda does not work.",
            "Install the build for your driver: https://pytorch.org/get-started/locally",
        )
    return Finding(
        "GPU",
        f"there is a driver, but PyTorch {torch.__version__} finds no device",
        f"--device cuda needs a driver for CUDA {torch.version.cuda} or later.",
        "Run `nvidia-smi` to see whether it lists a GPU, and the driver's CUDA version.",
    )


def findings(folder: Path) -> Iterator[Finding]:
    """All facts about this machine, for runs below `folder`, except those about the games."""
    yield from versions()
    yield processor()
    yield threads()
    yield memory()
    yield shared_memory()
    yield disk(folder)
    yield gpus()


def warnings(folder: Path, *, shared: float, written: float) -> list[str]:
    """A line for each problem that this machine has with a run.

    Args:
        folder: The run's folder.
        shared: Bytes of memory that its processes share; 0 for a run of one process.
        written: Bytes that it writes to disk.
    """
    checks = [threads(), *([shared_memory(shared)] if shared else []), disk(folder, written)]
    return [finding.warning for finding in checks if finding.problem]


def size(amount: float) -> str:
    """A number of bytes in GB, MB or KB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if amount >= factor:
            return f"{amount / factor:,.1f} {unit}"
    return f"{amount / 1e3:,.0f} KB"
