"""Cut one of two machines off from a training, then let it return. The weights must equal those of an undisturbed job.

    python benchmarks/cut_off.py [--seconds 40] [--timeout 15]     as root, on Linux with iproute2

Two network namespaces, joined by a pair of virtual network cards, stand for two machines. In each, torchrun starts one
process of the same job. The first job is left alone. In the second, the cable is pulled for `--seconds` in the middle
of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import add_out, write_result
from kill_ranks import SETTINGS, result

HOSTS = {"cnnlab0": "10.213.7.1", "cnnlab1": "10.213.7.2"}


def ip(*words: str, host: str = "") -> None:
    inside = ["ip", "netns", "exec", host] if host else []
    subprocess.run([*inside, "ip", *words], check=True)


def connect() -> None:
    """Create both namespaces, each with a network card."""
    ip("link", "add", "cnnlab0", "type", "veth", "peer", "name", "cnnlab1")
    for host, address in HOSTS.items():
        ip("netns", "add", host)
        ip("link", "set", host, "netns", host)
        ip("addr", "add", f"{address}/24", "dev", host, host=host)
        ip("link", "set", host, "up", host=host)
        ip("link", "set", "lo", "up", host=host)


def disconnect() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], check=False)


def start(runs: Path, name: str, timeout: float) -> list[subprocess.Popen[bytes]]:
    """Start torchrun on both machines."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    jobs = []
    for host in HOSTS:
        environment = {
            **os.environ, "CNNLAB_TIMEOUT": str(timeout), "GLOO_SOCKET_IFNAME": host, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [
            "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
            "--nproc-per-node", "1", "--max-restarts", "5", "--rdzv-backend", "c10d", "--rdzv-id", name,
            "--rdzv-endpoint", f"{HOSTS['cnnlab0']}:29512", "--rdzv-conf", f"is_host={int(host == 'cnnlab0')}",
            "--local-addr", HOSTS[host], "-m", "cnnlab", "train",
            "--data", "digits", "--runs-dir", str(runs), "--name", name, "--threads", "1", "--progress", "none",
            *settings,
        ]  # fmt: skip
        with (runs / f"{name}-{host}.log").open("wb") as log:
            jobs.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return jobs


def rows(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def trained(runs: Path, name: str, timeout: float, cut: float) -> dict[str, Any]:
    """Train on both machines. After the third epoch, cut the second one off for `cut` seconds; 0: never."""
    started, jobs = time.monotonic(), start(runs, name, timeout)
    if cut:
        while rows(runs / name) < 3 and all(job.poll() is None for job in jobs):
            time.sleep(0.05)
        ip("link", "set", "cnnlab1", "down", host="cnnlab1")
        time.sleep(cut)
        ip("link", "set", "cnnlab1", "up", host="cnnlab1")
    codes = [job.wait() for job in jobs]
    for host, code in zip(HOSTS, codes, strict=True):
        if code:
            print((runs / f"{name}-{host}.log").read_text()[-3000:])
    sessions = json.loads((runs / name / "environment.json").read_text())["sessions"]
    return {"exit_codes": codes, "sessions": len(sessions), "seconds": time.monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--timeout", type=float, default=15.0)
    add_out(parser)
    args = parser.parse_args()
    disconnect()
    connect()
    try:
        with tempfile.TemporaryDirectory() as folder:
            runs = Path(folder)
            figures: dict[str, Any] = {
                "undisturbed": trained(runs, "undisturbed", args.timeout, 0),
                "cut_off": trained(runs, "cut", args.timeout, args.seconds),
            }
            equal = result(runs / "cut") == result(runs / "undisturbed")
    finally:
        disconnect()
    print(figures, "equal", equal)
    figures |= {"equal": equal, "cut_seconds": args.seconds, "timeout_seconds": args.timeout, "settings": SETTINGS}
    print(write_result("cut-off", "cpu", figures, args.out))


if __name__ == "__main__":
    main()
