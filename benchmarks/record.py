"""Where benchmarks keep what they measured: a JSON file for each run under ``benchmarks/results``.

Git ignores that folder; ``git add -f`` keeps a run on purpose.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, found: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a run to a file of its own, with the date and the machine in front; returns the file."""
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    file.write_text(json.dumps({"date": date, "machine": machine(), **found}, indent=1), encoding="utf-8")
    return file


def machine() -> dict[str, Any]:
    """What a reader of the figures must know of the machine; ``load`` tells whether it was quiet."""
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
