"""Describe the machine and the software of a run: processor, caches, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bncore
from bncore.backends import native_module
from bncore.programs.bench.peers import Unavailable, installed

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Cache:
    """A cache that holds data: its level, its size in bytes, and how many processors share it."""

    level: int
    size: int
    shared_by: int

    @property
    def name(self) -> str:
        """L1, L2, ..."""
        return f"L{self.level}"


def caches(root: Path = CACHES) -> list[Cache]:
    """Read the data caches of the first processor; the list is empty if the system has none."""
    found = []
    for index in sorted(root.glob("index*")):
        try:
            level, kind, size, shared = (
                (index / name).read_text().strip()
                for name in ("level", "type", "size", "shared_cpu_list")
            )
            if kind != "Instruction":
                found.append(Cache(int(level), _bytes(size), _processors(shared)))
        except (OSError, ValueError):
            continue
    return found


def _bytes(text: str) -> int:
    """Read "1024K"."""
    return int(text[:-1]) * UNITS[text[-1]] if text[-1:] in UNITS else int(text)


def _processors(text: str) -> int:
    """Count the processors in a list such as "0-3,8"; an empty list means this processor."""
    count = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return max(count, 1)


def cache_share(level: int, found: list[Cache]) -> int:
    """Return one processor's share of a cache level in bytes, or 1 MiB if it is unknown."""
    return next((c.size // c.shared_by for c in found if c.level == level), 2**20)


def facts(keys: tuple[str, ...]) -> dict[str, str]:
    """Describe the machine, bncore, and the packages of the selected peers."""
    native = native_module()
    made = {
        "processor": f"{_processor()}, {os.cpu_count()} processors",
        "caches": ", ".join(f"{c.name} {c.size // 1024} KiB" for c in caches()) or "unknown",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load": f"{os.getloadavg()[0]:.1f} processes running before",
        "bncore": f"{bncore.__version__} ({native.isa() if native else 'no native module'})",
    }
    for key in ("numpy", "numba", *keys):
        try:
            made |= installed(key)
        except Unavailable:
            continue
    return made


def version_elsewhere(package: str, python: Path) -> str:
    """Return the version of a package that another interpreter would import.

    Raises
    ------
    Unavailable
        If it cannot be found.
    """
    program = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", program], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{python} has no {package}: {error}") from None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def plain(found: list[Cache]) -> list[dict[str, Any]]:
    """Cache sizes for JSON."""
    return [{"level": c.level, "bytes": c.size, "shared_by": c.shared_by} for c in found]
