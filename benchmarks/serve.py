"""Compare `cnnlab serve` with LitServe and with onnxruntime alone in a loop, with the same file and decoding.

    python benchmarks/serve.py [--rounds 3] [--seconds 5] [--tiny] [--onnx FILE]     # requests/s, latencies
    python benchmarks/serve.py --minutes 10                                          # memory under load

LitServe is imported from .peers/litserve: pip install --target .peers/litserve litserve python-multipart. The LitAPI
of _litserve.py decodes, batches (up to 32) and answers as `cnnlab serve` does. Each request is a form with one JPEG of
128 x 96 pixels, on connections that stay open. Each side is a process of its own (LitServe has several), and the
clients are another (asyncio, plain sockets). All share the cores, so the result includes the clients' share of one core
and the load of the machine beforehand. Otherwise both servers run with their defaults: LitServe with uvloop, httptools
and one worker process.

    loop        decodes an image and runs the network on it, again and again, without HTTP
    cnnlab      `cnnlab serve FILE`
    litserve    _litserve.py

The sides take turns, and their answers are compared with the loop's. Then the service runs alone with other batch
sizes and waiting times.

With --minutes: eight clients send images of many sizes, one in twenty of them broken, and the resident memory of the
service is recorded every second.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median

from _common import PEERS, Task, add_out, spread, write_result

CLIENTS = (1, 8, 32)
BATCH = 32
OPTIONS = ((1, 0), (8, 0), (32, 0), (64, 0), (32, 2), (32, 5))  # batch size, milliseconds of waiting
SIDES = ("loop", "cnnlab", "litserve")
# One network that takes less time than the rest of a request, and one that takes more.
NETWORKS = {"lenet": ("lenet", 0), "resnet18": ("resnet18", 96)}
PEER = PEERS / "litserve"


def photo(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG of smooth colours."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def export(network: str, folder: Path) -> Path:
    """Train a network for a few steps and export it."""
    import cnnlab

    model, side = NETWORKS[network]
    settings: Task = {"epochs": 1, "limit": 64, "image_size": side} if side else {"epochs": 1, "limit": 64}
    run = cnnlab.train("digits", model=model, runs_dir=folder, name=network, progress="none", **settings).run
    return cnnlab.export_run(run, out=folder / f"{network}.onnx").path


# Clients


def form(content: bytes) -> bytes:
    """Return a request with an image, as a browser or curl would send it."""
    head = (
        b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    body = head + content + b"\r\n--xyz--\r\n"
    return (
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Type: multipart/form-data; boundary=xyz\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


async def client(port: int, requests: list[bytes], start: int, end: float, found: list[Task]) -> None:
    """Send one request after the other on one connection until `end`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = start
    while time.perf_counter() < end:
        which = number % len(requests)
        begin = time.perf_counter()
        writer.write(requests[which].replace(b":PORT", b":%d" % port, 1))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        found.append({"seconds": time.perf_counter() - begin, "status": int(head[9:12]), "which": which, "body": body})
        number += 7
    writer.close()


async def load(port: int, requests: list[bytes], clients: int, seconds: float) -> list[Task]:
    found: list[Task] = []
    end = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, requests, i, end, found) for i in range(clients)))
    return found


def child_load(task: Task) -> Task:
    """Return what the clients measure: requests/s, latencies in milliseconds, and the label of each image."""
    requests = [form(photo(128, 96, seed)) for seed in range(16)]
    warm = asyncio.run(load(task["port"], requests, task["clients"], min(0.5, task["seconds"])))
    cpu, begin = time.process_time(), time.perf_counter()
    found = asyncio.run(load(task["port"], requests, task["clients"], task["seconds"]))
    wall = time.perf_counter() - begin
    labels = {f["which"]: json.loads(f["body"])["images"][0]["top"][0]["label"] for f in found if f["status"] == 200}
    ordered = sorted(f["seconds"] for f in found)
    return {
        "requests_per_second": len(found) / wall,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
        "failed": sum(f["status"] != 200 for f in found),
        "client_cpu_share": (time.process_time() - cpu) / wall,
        "labels": labels,
        "requests": len(found) + len(warm),
    }


def child_memory(task: Task) -> Task:
    """Send images of many sizes, some of them broken, for some minutes."""
    requests = [form(photo(16 + 37 * seed % 1400, 16 + 53 * seed % 900, seed)) for seed in range(60)]
    requests[::20] = [form(b"no image")] * 3
    answered, statuses, end = 0, set(), time.perf_counter() + task["seconds"]
    while time.perf_counter() < end:  # connections of five seconds each
        found = asyncio.run(load(task["port"], requests, 8, 5))
        answered += len(found)
        statuses |= {f["status"] for f in found}
    return {"requests": answered, "statuses": sorted(statuses)}


# Sides


def child_loop(task: Task) -> Task:
    """Decode and classify, without a service."""
    from cnnlab.device.cgroups import available_cores
    from cnnlab.export.runtime import open_exported
    from cnnlab.io.decode import bombs_refused, decode

    exported = open_exported(task["file"], threads=available_cores())
    how, classes = exported.decoding, exported.classes
    images = [photo(128, 96, seed) for seed in range(16)]
    labels: dict[int, str] = {}
    found: list[float] = []

    def one(i: int) -> None:
        row = exported.probabilities(decode("a.jpg", how, images[i % len(images)])[None])[0]
        labels[i % len(images)] = classes[int(row.argmax())]

    with bombs_refused():
        for i in range(32):
            one(i)
        cpu, end = time.process_time(), time.perf_counter() + task["seconds"]
        while (begin := time.perf_counter()) < end:
            one(len(found))
            found.append(time.perf_counter() - begin)
    ordered = sorted(found)
    return {
        "server_cpu_ms": (time.process_time() - cpu) / len(found) * 1e3,
        "requests_per_second": len(found) / sum(found), "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3, "failed": 0, "labels": labels,
    }  # fmt: skip


CHILDREN = {"load": child_load, "memory": child_memory, "loop": child_loop}


def call(task: Task) -> Task:
    """Run a task in a new process of this script. Return its answer."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        subprocess.run([sys.executable, __file__, "--child", json.dumps(task), str(answer)], check=True)
        found: Task = json.loads(answer.read_text())
        return found


@contextmanager
def serving(side: str, file: Path, batch: int = BATCH, wait: int = 0) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a side's server; yield its port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cnnlab", "serve", str(file), "--port", str(port)]
    command += ["--max-batch", str(batch), "--max-wait", str(wait)]
    if side == "litserve":
        command = [sys.executable, str(Path(__file__).with_name("_litserve.py")), str(file), str(port), str(batch)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                asyncio.run(load(port, [form(photo(128, 96, 0))], 1, 0.01))
                break
            except (OSError, EOFError, ValueError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{side} does not serve") from error
                time.sleep(0.2)
        yield port, process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def loaded(process: subprocess.Popen[bytes], task: Task) -> Task:
    """Return what the clients measure, and the CPU time that the server and its processes spend on a request."""
    before = cpu_seconds(process)
    found = call({"side": "load", **task})
    found["server_cpu_ms"] = (cpu_seconds(process) - before) / found.pop("requests") * 1e3
    return found


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    import psutil

    root = psutil.Process(process.pid)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    return float(sum(found.user + found.system for found in times))


def measure(file: Path, sides: list[str], clients: Sequence[int], rounds: int, seconds: float) -> Task:
    """Return the figures of each side by number of clients, from rounds in which the sides take turns."""
    found: dict[str, dict[str, list[Task]]] = {side: {} for side in sides}
    labels: list[Task] = []
    for number in range(rounds):
        for side in sides:
            if side == "loop":
                rows = {"0": call({"side": "loop", "file": str(file), "seconds": seconds})}
            else:
                with serving(side, file) as (port, process):
                    rows = {str(n): loaded(process, {"port": port, "clients": n, "seconds": seconds}) for n in clients}
            for many, row in rows.items():
                labels.append(row.pop("labels"))
                found[side].setdefault(many, []).append(row)
                print(f"{file.stem} round {number + 1}: {side}, {many} clients: "
                      f"{row['requests_per_second']:,.0f}/s, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
                      f"{row['server_cpu_ms']:.2f} ms of CPU, {row['failed']} failed", flush=True)  # fmt: skip
    return {
        "same_labels": all(labels[0][i] == label for one in labels for i, label in one.items()),
        "sides": {
            side: {many: {key: spread([row[key] for row in rows]) for key in rows[0]} for many, rows in by.items()}
            for side, by in found.items()
        },
    }


def options(file: Path, rounds: int, seconds: float) -> list[Task]:
    """Return the figures of the service with 32 clients, for several batch sizes and waiting times."""
    rows: dict[tuple[int, int], list[Task]] = {one: [] for one in OPTIONS}
    for _ in range(rounds):
        for batch, wait in OPTIONS:
            with serving("cnnlab", file, batch, wait) as (port, process):
                row = loaded(process, {"port": port, "clients": 32, "seconds": seconds})
            row.pop("labels")
            rows[batch, wait].append(row)
            print(f"{file.stem}: max-batch {batch}, max-wait {wait:g}: {row['requests_per_second']:,.0f}/s, "
                  f"p50 {row['p50_ms']:.1f} ms, {row['server_cpu_ms']:.2f} ms of CPU", flush=True)  # fmt: skip
    return [
        {"max_batch": batch, "max_wait_ms": wait, **{key: spread([row[key] for row in found]) for key in found[0]}}
        for (batch, wait), found in rows.items()
    ]


def memory(file: Path, minutes: float) -> Task:
    """Return the resident memory of the service, by minute, while it answers."""
    import psutil

    with serving("cnnlab", file) as (port, process):
        task = {"side": "memory", "port": port, "seconds": minutes * 60}
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            clients = subprocess.Popen([sys.executable, __file__, "--child", json.dumps(task), str(answer)])
            watched, begin = psutil.Process(process.pid), time.monotonic()
            samples: list[tuple[float, float]] = []
            while clients.poll() is None:
                samples.append((time.monotonic() - begin, watched.memory_info().rss / 2**20))
                time.sleep(min(1.0, minutes * 6))
            figures: Task = json.loads(answer.read_text())
    by_minute = [
        median(mib for at, mib in samples if minute <= at / 60 < minute + 1)
        for minute in range(int(samples[-1][0] // 60) + 1)
    ]
    print(
        f"{figures['requests']:,} requests; MiB by minute: {', '.join(f'{mib:.0f}' for mib in by_minute)}", flush=True
    )
    return {"minutes": minutes, **figures, "rss_mib_by_minute": by_minute, "rss_mib_peak": max(m for _, m in samples)}


def versions(sides: list[str]) -> dict[str, str]:
    """Return the versions of the measured packages."""
    found = {name: version(name) for name in ("onnxruntime", "starlette", "uvicorn")}
    peer = next(PEER.glob("litserve-*.dist-info"), None) if "litserve" in sides else None
    return {**found, "litserve": peer.name.split("-")[1].removesuffix(".dist")} if peer else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side. Default: 3")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement. Default: 5")
    parser.add_argument("--minutes", type=float, help="measure memory instead, for so long")
    parser.add_argument("--onnx", type=Path, help="a file to serve. Default: two networks, trained for a few steps")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: one round of short measurements")
    add_out(parser)
    args = parser.parse_args()
    sides = [side for side in SIDES if side != "litserve" or (PEER / "litserve").exists()]
    if args.tiny:
        args.rounds, args.seconds, sides = 1, 0.2, [side for side in sides if side != "litserve"]
    clients = (8,) if args.tiny else CLIENTS
    if "litserve" not in sides:
        print("litserve is left out: it is not in .peers/litserve", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        names = [args.onnx.stem] if args.onnx else list(NETWORKS)
        files = {name: args.onnx or export(name, Path(folder)) for name in names}
        if args.minutes:
            name, file = next(iter(files.items()))
            figures: Task = {"network": name, "memory": memory(file, args.minutes)}
        else:
            figures = {"n": args.rounds, "seconds": args.seconds, "clients": clients, "versions": versions(sides)}
            figures["load_before"] = os.getloadavg()[0]
            figures["networks"] = {
                name: measure(file, sides, clients, args.rounds, args.seconds) for name, file in files.items()
            }
            if not args.tiny:
                figures["options"] = {name: options(file, args.rounds, args.seconds) for name, file in files.items()}
    print(write_result("serve-memory" if args.minutes else "serve", "cpu", figures, args.out))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        answer_ = CHILDREN[json.loads(sys.argv[2])["side"]](json.loads(sys.argv[2]))
        Path(sys.argv[3]).write_text(json.dumps(answer_))
    else:
        main()
