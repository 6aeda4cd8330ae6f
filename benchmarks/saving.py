"""How long does a save inside an epoch hold up the training? Each network's real loop, saved after every few steps.

For each: a step; the pause that a save makes between two steps (copies of weights, optimiser and random states); how
long it takes, beside the steps that follow, until it is on the disk under --runs-dir; what both cost, the slower steps
counted, and what share of the time that is where it is saved once a minute, as recipes do unless told otherwise. The
disk matters as much as the machine: the result names the folder's file system.
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
from cnnlab import train
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training import train as training
from cnnlab.training.checkpoint import BackgroundWriter

# Network and image size: the smallest, the middle and the largest of the chapter.
EVERY = 8  # steps: enough for one save to be on the disk before the next
NETWORKS = {"lenet-bn": 28, "resnet18": 96, "vgg11-quarter": 224, "alexnet": 224}


def measured(network: str, size: int, batch: int, saves: int, device: str, runs_dir: str) -> dict[str, Any]:
    """Train on the digits, resized, EVERY steps a save; returns the figures."""
    real = {name: vars(training)[name] for name in ("train_step", "save_checkpoint", "BackgroundWriter")}
    steps: list[tuple[float, float]] = []
    pauses: list[tuple[float, float]] = []
    writes: list[tuple[float, float]] = []

    def timed_step(*args: Any) -> Any:
        began = time.perf_counter()
        answer = real["train_step"](*args)
        answer[0].item()  # waits for a GPU
        steps.append((began, time.perf_counter()))
        return answer

    def timed_save(path: Path, *args: Any) -> None:
        began = time.perf_counter()
        real["save_checkpoint"](path, *args)
        if args[3]["part"]:
            pauses.append((began, time.perf_counter()))

    class TimedWriter(BackgroundWriter):
        def do(self, *jobs: Callable[[], None]) -> None:
            self.wait()
            began = time.perf_counter()
            super().do(*jobs, lambda: writes.append((began, time.perf_counter())))

    recipe = RECIPES["digits"].changed(
        model=network, image_size=size, batch_size=batch, limit=5 * EVERY * batch + batch, epochs=-(-saves // 5),
        save_steps=EVERY, save_seconds=0.0, precision="float32", compile="off",
    )  # fmt: skip
    vars(training).update(train_step=timed_step, save_checkpoint=timed_save, BackgroundWriter=TimedWriter)
    try:
        with tempfile.TemporaryDirectory(dir=runs_dir) as folder:
            run = train(recipe, runs_dir=folder, progress="none", device=device).run
            mib = run.checkpoint.stat().st_size / 2**20
    finally:
        vars(training).update(real)
    # Of each save inside an epoch: the pause, the writing that began in it, and the steps that it went on beside.
    written = [next(w for w in writes if began <= w[0] <= ended) for began, ended in pauses]
    beside = [[s for s in steps if s[0] < w[1] and w[0] < s[1]] for w in written]
    among = {s for some in beside for s in some}
    step = median(end - began for began, end in steps[1:] if (began, end) not in among)
    costs = [
        pause[1] - pause[0] + sum(end - began - step for began, end in some)
        for pause, some in zip(pauses, beside, strict=True)
    ]
    default = float(Recipe().save_seconds)
    return {
        "image_size": size,
        "batch_size": batch,
        "saves": len(pauses),
        "checkpoint_mib": mib,
        "step_seconds": step,
        "pause_seconds": spread([end - began for began, end in pauses]),
        "written_after_seconds": spread([end - began for began, end in written]),
        "cost_seconds": spread(costs),
        "share_once_a_minute": median(costs) / default,
    }


def file_system(path: Path) -> str:
    """Its kind, as the system's table of mounts has it."""
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
    parser.add_argument("--tiny", action="store_true", help="one small network: to see that it works")
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
