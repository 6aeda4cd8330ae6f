"""What the benchmark scripts share: where results go and what stands beside every figure."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cnnlab.device import available_cores, environment, pick_device
from cnnlab.files import write_json

RESULTS = Path(__file__).parent / "results"


def _commit() -> str | None:
    """The commit that was measured, with a + where files were changed since."""
    git = ["git", "-C", str(RESULTS.parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "../src"], capture_output=True, text=True).stdout
    return head + ("+" if changed else "") if head else None


def write_result(name: str, device: str, figures: dict[str, Any]) -> Path:
    """Write results/NAME_HARDWARE_DATE.json: the figures with script, command, hardware, versions and date."""
    env = environment(pick_device(device), available_cores())
    hardware = re.sub(r"[^a-z0-9]+", "-", f"{env['device_name']}-{env['cores']}-cores".lower()).strip("-")
    if env["device"].startswith("cuda"):
        hardware = re.sub(r"[^a-z0-9]+", "-", env["device_name"].lower()).strip("-")
    path = RESULTS / f"{name}_{hardware}_{datetime.now(UTC):%Y-%m-%d}.json"
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    write_json(path, {"benchmark": name, "command": command, "commit": _commit(), "environment": env, **figures})
    return path
