"""Measure how a training scales from one process to two, compared with a plain loop, and fit a cost model.

    python benchmarks/scale.py [--rounds 5] [--network resnet18-manual] [--size 96] [--batch 64] [--steps 12]

Alternates `cnnlab.train` and a loop of a dozen lines around torch's DistributedDataParallel, with the same network,
batch and Fashion-MNIST images, in one process and in two, with one thread each. Rates are images per second,
wall-clock including data, of the steps after the first two. Then two processes exchange gradients of several sizes
over gloo.

The model: a step takes compute + exchange. compute = seconds per image * images of a process. exchange = latency *
log2(processes) + 2 (processes - 1) / processes * bytes / bandwidth, for a ring all-reduce. DistributedDataParallel
overlaps part of the exchange with the backward pass, so this is an upper bound.

Needs Fashion-MNIST (CNNLAB_DATA). Writes build/results/scale_HARDWARE_DATE.json.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _common import Task, add_out, call, spread, write_result

SIZES_MIB = (0.001, 1, 8, 45, 100)


def child_cnnlab(task: Task) -> Task:
    """Train with `cnnlab.train`. Return the rate of the steps after the first two."""
    from cnnlab import Recipe, train
    from cnnlab.training import loop

    times: list[float] = []
    module: Any = loop
    real = module.train_step

    def timed(*args: Any, **more: Any) -> Any:
        answer = real(*args, **more)
        times.append(time.perf_counter())
        return answer

    module.train_step = timed
    recipe = Recipe(
        data="fashion-mnist", model=task["network"], image_size=task["size"], epochs=1, batch_size=task["batch"],
        limit=task["batch"] * task["steps"], shift=2, flip=True, learning_rate=0.01, momentum=0.9,
        memory_format="contiguous", compile="off", eval_split="train", save_seconds=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, runs_dir=os.environ.get("SCALE_RUNS", folder), threads=1, progress="none")
    return {"rate": (len(times) - 2) * task["batch"] / (times[-1] - times[1])}


def child_plain(task: Task) -> Task:
    """Train with a tutorial's loop: shuffled shards, DistributedDataParallel, SGD. Return the rate likewise."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    from cnnlab import build_model
    from cnnlab.data import data_folder, load_images
    from cnnlab.data.imageset import SourceOptions

    torch.set_num_threads(1)
    torch.manual_seed(0)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("gloo")
    images = load_images("fashion-mnist", "train", SourceOptions(data_dir=data_folder(None)))
    assert images is not None
    pixels, labels = images.images[: task["batch"] * task["steps"]], images.labels
    model: Any = build_model(task["network"], num_classes=10, in_channels=1, image_size=task["size"])
    if several:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    order = torch.randperm(len(pixels))[rank::size]
    times = []
    for index in order.split(task["batch"] // size):
        x = F.interpolate(pixels[index].float() / 255, size=(task["size"],) * 2, mode="bilinear", antialias=True)
        mirrored = torch.rand(len(x)) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        loss = F.cross_entropy(model((x - 0.286) / 0.353), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter())
    if several:
        dist.destroy_process_group()
    return {"rate": (len(times) - 2) * task["batch"] / (times[-1] - times[1])}


def child_exchange(task: Task) -> Task:
    """Return the seconds of an all-reduce for each size in MiB, the median of 15."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for mib in task["sizes"]:
        tensor = torch.ones(max(1, int(mib * 2**20 / 4)))
        seconds = []
        for _ in range(18):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - start)
        found[str(mib)] = median(seconds[3:])
    dist.destroy_process_group()
    return found


CHILDREN = {"cnnlab": child_cnnlab, "plain": child_plain, "exchange": child_exchange}


def together(task: Task, processes: int) -> Task:
    """Run a child in `processes` connected processes. Return the answer of the first."""
    if processes == 1:
        return call(task)
    from concurrent.futures import ThreadPoolExecutor

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        tasks = [
            {**task, "environment": {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": str(port), "SCALE_RUNS": folder,
            }}
            for rank in range(processes)
        ]  # fmt: skip
        answers = list(pool.map(call, tasks))
        return answers[0]


def fitted(exchange: Task) -> tuple[float, float]:
    """Return the latency in seconds and the bandwidth in bytes per second of an all-reduce between two processes."""
    small, large = exchange[str(SIZES_MIB[0])], exchange[str(SIZES_MIB[-1])]
    return small, SIZES_MIB[-1] * 2**20 / (large - small)  # for two processes, 2 (P - 1) / P is 1


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        import json

        task = json.loads(sys.argv[2])
        os.environ |= task.get("environment", {})
        answer = CHILDREN[task["side"]](task)
        Path(sys.argv[3]).write_text(json.dumps(answer))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", default="resnet18-manual")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    add_out(parser)
    args = parser.parse_args()
    shared = {"network": args.network, "size": args.size, "batch": args.batch, "steps": args.steps}
    rates: dict[str, list[float]] = {f"{side} {n}": [] for side in ("cnnlab", "plain") for n in (1, 2)}
    for _ in range(args.rounds):
        for side in ("cnnlab", "plain"):
            for processes in (1, 2):
                rate = together({"side": side, **shared}, processes)["rate"]
                rates[f"{side} {processes}"].append(rate)
                print(f"{side}, {processes}: {rate:.1f} images/s", flush=True)
    exchange = together({"side": "exchange", "sizes": SIZES_MIB}, 2)
    latency, bandwidth = fitted(exchange)
    from cnnlab import build_model

    parameters = sum(
        p.numel() for p in build_model(args.network, num_classes=10, in_channels=1, image_size=args.size).parameters()
    )
    efficiency = {
        side: spread([two / (2 * one) for one, two in zip(rates[f"{side} 1"], rates[f"{side} 2"], strict=True)])
        for side in ("cnnlab", "plain")
    }
    per_image = 1 / median(rates["cnnlab 1"])
    predicted = args.batch / (per_image * args.batch / 2 + latency + 4 * parameters / bandwidth)
    figures = {
        **shared, "rounds": args.rounds, "parameters": parameters, "rates": rates, "efficiency": efficiency,
        "exchange_seconds": exchange, "latency_seconds": latency, "bandwidth_bytes_per_second": bandwidth,
        "seconds_per_image": per_image, "predicted_rate_of_two": predicted,
    }  # fmt: skip
    print(write_result("scale", "cpu", figures, args.out))


if __name__ == "__main__":
    main()
