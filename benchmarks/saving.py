"""Measure how long a save inside an epoch delays the training, for several networks.

For each network: the time of a step; the pause between two steps while weights, optimizer and random states are
copied; the time until the copies are on the disk under --runs-dir; the total cost of a save, from alternating trainings
with and without saves; and that cost as a fraction of the time at one save a minute, the recipes' default. The disk
matters as much as the machine, so the result names the folder's file system.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _common import add_out, spread, write_result
from cnnlab import Recipe, build_model, train, train_step
from cnnlab.device.hardware import pick_device
from cnnlab.device.timing import synchronize
from cnnlab.recipes import RECIPES
from cnnlab.training.checkpoint import save_checkpoint
from cnnlab.training.optim import make_optimizer

EVERY = 8  # steps: enough for one save to be on the disk before the next
# Network and image size, from small to large networks of the chapter.
NETWORKS = {"lenet-bn": 28, "resnet18": 96, "vgg11-quarter": 224, "alexnet": 224}


def measured(network: str, size: int, batch: int, saves: int, device: str, runs_dir: str) -> dict[str, Any]:
    """Train on resized digits, with and without a save every EVERY steps. Return the figures."""
    pairs = -(-saves // 5)
    recipe = RECIPES["digits"].changed(
        model=network, image_size=size, batch_size=batch, limit=5 * EVERY * batch + batch, epochs=1,
        save_steps=0, save_seconds=0.0, precision="float32", compile="off",
    )  # fmt: skip
    costs, steps = [], []
    with tempfile.TemporaryDirectory(dir=runs_dir) as folder:
        for _ in range(pairs):
            plain, saved = (
                train(recipe.changed(save_steps=every), runs_dir=folder, progress="none", device=device).history[0]
                for every in (0, EVERY)
            )
            costs.append((saved["train_seconds"] - plain["train_seconds"]) / 5)
            steps.append(plain["train_seconds"] / (5 * EVERY + 1))
        pauses, writes, mib = single_saves(recipe, saves, device, Path(folder))
    return {
        "image_size": size,
        "batch_size": batch,
        "saves": saves,
        "checkpoint_mib": mib,
        "step_seconds": median(steps),
        "pause_seconds": spread(pauses),
        "written_after_seconds": spread(writes),
        "cost_seconds": spread(costs),
        "share_once_a_minute": median(costs) / float(Recipe().save_seconds),
    }


def single_saves(recipe: Recipe, saves: int, device: str, folder: Path) -> tuple[list[float], list[float], float]:
    """Return the seconds of each copy and of each write, and the size of the checkpoint in MiB."""
    import torch

    here, size = pick_device(device), recipe.image_size
    model = build_model(recipe.model, num_classes=10, in_channels=1, image_size=size).to(here)
    optimizer = make_optimizer(model, recipe)
    train_step(model, optimizer, torch.rand(2, 1, size, size, device=here), torch.tensor([0, 1], device=here))
    path, jobs = folder / "checkpoint.safetensors", list[Callable[[], None]]()
    pauses, writes = [], []
    for _ in range(saves):
        synchronize(here)
        start = time.perf_counter()
        save_checkpoint(path, model, optimizer, here, {}, None, jobs.append)
        pauses.append(time.perf_counter() - start)
        start = time.perf_counter()
        jobs.pop()()
        writes.append(time.perf_counter() - start)
    return pauses, writes, path.stat().st_size / 2**20


def file_system(path: Path) -> str:
    """Return the type of the file system, from the mount table."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    return max((m for m in found if path.resolve().is_relative_to(m[0])), key=lambda m: len(m[0]), default=["", "?"])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs-dir", type=Path, default=Path(), help="a folder on the disk that is measured")
    add_out(parser)
    parser.add_argument("--tiny", action="store_true", help="a smoke test: one small network")
    args = parser.parse_args()
    if args.tiny:
        args.networks, args.saves, args.batch_size = ["lenet-bn"], 5, 16
    figures = {}
    for network in args.networks:
        if network not in NETWORKS:
            parser.error(f"{network}: one of {', '.join(NETWORKS)}")
        runs_dir = str(args.runs_dir.absolute())
        f = figures[network] = measured(
            network, NETWORKS[network], args.batch_size, args.saves, args.device, runs_dir
        )  # fmt: skip
        ms = {name: f"{1000 * f[f'{name}_seconds']['median']:.0f}" for name in ("pause", "written_after", "cost")}
        low, high = (f"{1000 * f['pause_seconds'][end]:.0f}" for end in ("min", "max"))
        print(
            f"{network}: {f['checkpoint_mib']:.1f} MiB; a step of {args.batch_size} images takes "
            f"{1000 * f['step_seconds']:.0f} ms; a save makes a pause of {ms['pause']} ms ({low} to {high}, "
            f"n={f['saves']}), is on the disk after {ms['written_after']} ms and costs {ms['cost']} ms in all: once a "
            f"minute {f['share_once_a_minute']:.2%} of the time",
            flush=True,
        )
    about = {"n": args.saves, "file_system": file_system(args.runs_dir), "networks": figures}
    print(f"wrote {write_result('saving', args.device, about, args.out)}")


if __name__ == "__main__":
    main()
