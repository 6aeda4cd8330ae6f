"""Measure everything on one GPU within ten minutes: python benchmarks/gpu_suite.py [--store STORE] [--parts ...]

Parts run in this order. Each has a share of the time, after which it starts nothing new. The result is rewritten after
each part and names what there was no time for:

    cifar    time to 94% and 96% on CIFAR-10 with several seeds, on a validation split (needs --store)
    peer     the best published code for 94%, with only the number of runs changed, on the same GPU and split; reports
             who is ahead (needs --store, and a copy of its repository in .peers/cifar10-airbench)
    fashion  time to 94%, 95% and 96% on Fashion-MNIST with several seeds
    chapter  every network for which the manual prints examples/s (which exclude data loading), at its batch and image
             size: images/s, wall-clock with data, compared with that, and the share of the GPU's measured peak;
             recorded (compile=record) in float32 and bfloat16, then compiled in bfloat16 (--ways float32: compiled in
             float32, which saves the conversion of a small network's weights)
    best     AlexNet at 224 pixels and ResNet-18 at 96, compiled, with large batches: the largest share of the peak
    profile  where those two and LeNet with batch norm spend their time: the kernels of a step, the longest first
    d2l      d2l's own functions compared with ours on this GPU (if d2l is in .peers/d2l, see vs_d2l.py)

The clock of fashion, cifar and peer covers whitening, training and the final evaluation with test-time augmentation, in
the precision of the training (race_seconds of cnnlab.machine.timed; the peer's own clock). It excludes reading files,
moving the images to the GPU, compilation, and a warm-up of one epoch with another seed, whose seconds are reported
separately (first_seconds). On CIFAR-10, accuracy is measured on the 4,000 held-out images (split_seed 0); the peer gets
them as its test set. On Fashion-MNIST, a tenth is held out, and accuracy is measured on the test set.

On a machine without a GPU, --tiny runs the same parts at a reduced size.
Writes build/results/gpu-suite_HARDWARE_DATE.json (gpu-suite-LABEL with --label).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import _speed
import vs_d2l
from _common import PEERS, add_out, write_result
from cnnlab.chapter.experiments import EXPERIMENTS
from cnnlab.device.hardware import has_bfloat16, pick_device
from cnnlab.machine.bench import bench
from cnnlab.machine.timed import timed_training
from cnnlab.models import build_model
from cnnlab.recipes import RECIPES
from cnnlab.training.autotune import time_step
from cnnlab.training.cuda_graph import warmup_steps
from cnnlab.training.plan import Plan, Workload

PEER = PEERS / "cifar10-airbench" / "airbench94_muon.py"
# Each part's share of the time; what a part does not use goes to those after it.
PARTS = {"cifar": 0.25, "peer": 0.25, "fashion": 0.15, "chapter": 0.12, "best": 0.04, "profile": 0.04, "d2l": 0.15}
# 46,000 images for training and 4,000 for validation, both whole batches of 2,000. With a partial batch, PyTorch would
# compile the peer's network again inside its clock, which is not what was published.
SPLIT = "val_fraction=0.08"
LATE = "no time was left"
# The manual's examples/s, for each network for which it prints them. WAYS: how ours are computed.
PRINTED = {RECIPES[e.recipe].model: e.examples_per_second for e in EXPERIMENTS.values() if e.examples_per_second}
WAYS: dict[str, dict[str, Any]] = {
    "auto": {"compile": "auto"},
    "default": {"compile": "default", "precision": "bfloat16", "memory_format": "channels_last"},
    "float32": {"compile": "default", "precision": "float32", "memory_format": "channels_last"},
}
# Network, image size and batch size of the parts best and profile.
LARGE = [("alexnet", 224, 1024), ("resnet18-manual", 96, 2048)]
TINY = [("lenet-bn", 28, 64)]
PROFILED_STEPS = 5


def run_for(seconds: float | None, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command. A timeout also kills its children, because the next command needs the GPU."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as process:
        try:
            output = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                error.output, error.stderr = process.communicate()  # what it printed so far
            raise
        return subprocess.CompletedProcess(command, process.returncode, *output)


def measured(args: argparse.Namespace, network: str, **options: Any) -> dict[str, Any]:
    """Run `cnnlab bench` for a network. The GPU's peaks are measured in the first call only."""
    seconds = 0.05 if args.tiny else 0.7
    try:
        found = bench([network], device=args.device, seconds=seconds, accuracy=False, peaks=args.peaks, **options)
    except Exception as error:  # the other networks' figures must not be lost with this one
        if args.tiny:
            raise
        return {"failed": failed(error)}
    args.peaks = {**(args.peaks or {}), **found.peaks}
    return found.to_dict()


def chapter(args: argparse.Namespace, deadline: float) -> dict[str, Any]:
    networks = ["lenet-bn"] if args.tiny else args.networks
    ways = {"off": {"compile": "off"}} if args.tiny else {way: WAYS[way] for way in WAYS if way in args.ways}
    found: dict[str, Any] = {}
    for way, how in ways.items():
        for name in networks:
            if time.perf_counter() > deadline:
                found[f"{name}, {way}"] = LATE
                continue
            answer = measured(args, name, **how)
            if "rows" in answer:
                # One row per precision.
                answer["times_printed"] = [row.get("images_per_second", 0) / PRINTED[name] for row in answer["rows"]]
            found[f"{name}, {way}"] = answer
    return {"by_network": found, "printed_examples_per_second": PRINTED}


def best(args: argparse.Namespace, deadline: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for network, side, batch in TINY if args.tiny else LARGE:
        if time.perf_counter() > deadline:
            found[f"{network}, batch {batch}"] = LATE
            continue
        found[f"{network}, batch {batch}"] = measured(
            args, network, image_size=side, batch_size=batch, precision="float32" if args.tiny else "bfloat16",
            memory_format="channels_last", compile="off" if args.tiny else "default",
        )  # fmt: skip
    return found


def profile(args: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Profile a step of the networks of `best`, and of LeNet with batch norm at the book's batch size."""
    found: dict[str, Any] = {}
    for network, side, batch in TINY if args.tiny else [*LARGE, ("lenet-bn", 28, 256)]:
        name = f"{network}, batch {batch}"
        try:
            found[name] = LATE if time.perf_counter() > deadline else kernels(args, network, side, batch)
        except Exception as error:
            if args.tiny:
                raise
            found[name] = failed(error)
    return found


def kernels(args: argparse.Namespace, network: str, side: int, batch: int) -> dict[str, Any]:
    """Return the microseconds per step of each kernel (on a CPU, each operator) in a training step without data."""
    from torch.profiler import ProfilerActivity, schedule

    device = pick_device(args.device)
    on_gpu = device.type == "cuda"
    plan = Plan(
        threads=1,
        precision=torch.bfloat16 if on_gpu else torch.float32,
        memory_format=torch.channels_last,
        compile="default" if on_gpu else "off",
    )
    recipe = next(r for r in (RECIPES[e.recipe] for e in EXPERIMENTS.values()) if r.model == network)
    first = warmup_steps(plan, device)
    with torch.profiler.profile(
        activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU],
        schedule=schedule(wait=first, warmup=1, active=PROFILED_STEPS, repeat=1),
    ) as profiler:
        build = partial(build_model, network, image_size=side)
        work = Workload(recipe.changed(batch_size=batch), build, (1, side, side), 10, device)
        seconds = time_step(work, plan, min_steps=1 + PROFILED_STEPS, seconds=0, max_steps=0, check=profiler.step)
    if math.isinf(seconds):
        raise RuntimeError(f"{network} needs more memory than there is, or cannot be compiled")
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [e for e in profiler.key_averages() if not e.key.startswith("ProfilerStep")]  # the step as a whole
    times = {e.key[:160]: (getattr(e, time_of), e.count) for e in events}
    longest = sorted(times.items(), key=lambda item: -item[1][0])[:40]
    return {
        "ms_per_step": seconds * 1e3,
        "steps": PROFILED_STEPS,
        "precision": plan.values["dtype"],
        "compile": plan.compile,
        "us_per_step_of_all": sum(t for t, _ in times.values()) / PROFILED_STEPS,
        "kernels": [
            {"name": name, "us_per_step": t / PROFILED_STEPS, "calls_per_step": count / PROFILED_STEPS}
            for name, (t, count) in longest
        ],
    }


def d2l(args: argparse.Namespace, deadline: float) -> Any:
    if not (PEERS / "d2l" / "d2l").exists():
        return "d2l is not in .peers/d2l"
    found: dict[str, Any] = {}
    for network in ["lenet-bn"] if args.tiny else ["lenet-bn", "resnet18-manual", "alexnet"]:
        left = deadline - time.perf_counter()
        if left < 0:
            found[network] = LATE
            continue
        with tempfile.TemporaryDirectory() as out:
            # Large networks get some of the images: an epoch of d2l's would take minutes. Small ones train for ten
            # epochs, as in the manual, since the first step of a process takes as long as two epochs of LeNet.
            size = ["--epochs", "10"] if vs_d2l.NETWORKS[network][1] == 0 else ["--images", "20480"]
            options = ["--tiny"] if args.tiny else ["--pairs", "1", *size]
            command = [sys.executable, vs_d2l.__file__, "--networks", network, *options, "--out", out]
            try:
                done = run_for(None if args.tiny else left + 20, command)
            except subprocess.TimeoutExpired:
                found[network] = LATE
                continue
            if done.returncode:
                found[network] = f"failed: {last_line(done.stderr)}"
                if args.tiny:
                    raise RuntimeError(done.stderr[-2000:])
                continue
            results = list(Path(out).glob("*.json"))
            found[network] = json.loads(results[0].read_text())["networks"][network] if results else done.stdout
    return found


def race(
    args: argparse.Namespace, deadline: float, name: str, seeds: int, settings: list[str], split: str, views: str
) -> Any:
    """Train a warm-up epoch, which includes compilation, then at most `seeds` runs until the deadline."""
    if time.perf_counter() > deadline:
        return LATE
    recipe = RECIPES[name].with_settings(settings)
    try:
        first = timed_training(recipe.changed(seed=1_000_000, epochs=1), split, views, args.device, as_trained=True)
        found = _speed.runs(
            name, seeds, settings, split, views, args.device, together=True, deadline=deadline,
            first=args.first_seed,
        )  # fmt: skip
    except Exception as error:  # the other races' figures must not be lost with this one
        if args.tiny:
            raise
        return failed(error)
    return {"first_seconds": first["clock_seconds"], **found}


def races(
    args: argparse.Namespace, deadline: float, names: dict[str, int], settings: list[str], split: str, views: str
) -> dict[str, Any]:
    """Train each recipe with its number of seeds, in an equal share of the remaining time."""
    found: dict[str, Any] = {}
    names = {name: seeds for name, seeds in names.items() if args.only is None or name in args.only}
    for number, (name, seeds) in enumerate(names.items()):
        now = time.perf_counter()
        own = now + (deadline - now) / (len(names) - number)
        found[name] = race(args, own, name, seeds, settings, split, views)
    return found


def failed(error: Exception) -> str:
    # A timeout's message contains the command, with paths of this machine.
    message = "" if isinstance(error, subprocess.SubprocessError) else f": {error}"
    return f"failed: {type(error).__name__}{message}"


def last_line(text: str) -> str:
    """Return the last line of a traceback: the exception, without paths of this machine."""
    return (text.strip().splitlines() or ["no output"])[-1][:300]


def _compiled(args: argparse.Namespace) -> list[str]:
    """Return settings that compile a race's steps, as the peer does. By default, such short runs are not compiled.

    They fix bfloat16, so that no other plan has to be compiled and measured.
    """
    if args.tiny:
        return []
    return ["compile=default", *(["precision=bfloat16"] if has_bfloat16(pick_device(args.device)) else [])]


def fashion(args: argparse.Namespace, deadline: float) -> dict[str, Any]:
    names = (
        {"speed/fashion-90": 1} if args.tiny else {"speed/fashion-94": 10, "speed/fashion-95": 5, "speed/fashion-96": 3}
    )
    settings = [*(["limit=500"] if args.tiny else []), *_compiled(args), *args.set]
    return races(args, deadline, names, settings, "validation" if args.tiny else "test", "flip")


def cifar(args: argparse.Namespace, deadline: float) -> Any:
    if args.tiny:
        settings = ["data=digits", "limit=500", "epochs=1", "image_size=32"]
        return races(args, deadline, {"speed/cifar-90": 1}, settings, "validation", "shift")
    if args.store is None:
        return "no --store"
    settings = [f"data=store:{args.store.absolute()}", SPLIT, *_compiled(args), *args.set]
    return races(args, deadline, {"speed/cifar-94": 20, "speed/cifar-96": 3}, settings, "validation", "shift")


def peer_runs(output: str) -> list[dict[str, float]]:
    """Return the accuracy (with test-time augmentation) and seconds of each run of the peer after the warm-up."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "eval" in line]
    # run, epoch (`eval` in a run's last line), train_acc, val_acc, tta_val_acc, time_seconds
    found = [{"acc": float(row[4]), "seconds": float(row[5])} for row in rows if len(row) == 6 and row[1] == "eval"]
    return found[1:]


def compared(ours: Any, theirs: list[dict[str, float]]) -> dict[str, Any]:
    """Return both means, and who reaches the same accuracy (within two standard errors) in less time."""
    if not isinstance(ours, dict) or len(theirs) < 2:
        return {"who is ahead": "not known: a side is missing"}
    accs, times = [t["acc"] for t in theirs], [t["seconds"] for t in theirs]
    sides = {
        "cnnlab": {
            "n": len(ours["per_seed"]),
            "acc": ours["final_acc"]["mean"],
            "seconds": ours["race_seconds"]["mean"],
        },
        "peer": {"n": len(accs), "acc": mean(accs), "seconds": mean(times)},
    }
    error = math.hypot(stdev(accs) / len(accs) ** 0.5, (ours["final_acc"]["std"] or 0) / sides["cnnlab"]["n"] ** 0.5)
    gap = sides["cnnlab"]["acc"] - sides["peer"]["acc"]
    faster = sides["cnnlab"]["seconds"] < sides["peer"]["seconds"]
    ahead = "neither: one is faster, the other more accurate"
    if faster and gap > -2 * error:
        ahead = "cnnlab"
    elif not faster and gap < 2 * error:
        ahead = "peer"
    return {**sides, "standard error of the difference": error, "who is ahead": ahead}


def peer(args: argparse.Namespace, deadline: float) -> Any:
    """Run the published script with our split as its training and test set."""
    if args.store is None or not PEER.exists():
        return "no --store" if args.store is None else f"{PEER.parent.name} is not in .peers"
    if not torch.cuda.is_available():
        return "the published code needs CUDA"
    from cnnlab.data import SourceOptions, data_folder
    from cnnlab.data.splits import load_splits

    recipe = RECIPES["speed/cifar-94"].with_settings([f"data=store:{args.store.absolute()}", SPLIT])
    splits = load_splits(recipe, SourceOptions(data_dir=data_folder(None)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cifar10").mkdir()
        for name, images in zip(("train", "test"), splits, strict=True):
            # The peer's format: images (N, H, W, C).
            content = {"images": images.images[:].permute(0, 2, 3, 1).contiguous(), "labels": images.labels}
            torch.save({**content, "classes": images.classes}, Path(folder) / "cifar10" / f"{name}.pt")
        text = re.sub(r"range\(200\)", f"range({args.peer_runs})", PEER.read_text())
        script = Path(folder) / PEER.name
        script.write_text(text)
        start = time.perf_counter()
        try:
            done = run_for(max(30, deadline - start), [sys.executable, "-u", script.name], cwd=folder)
        except subprocess.TimeoutExpired as late:  # keep the finished runs
            return {"seconds": time.perf_counter() - start, "stopped": True, "runs": peer_runs(str(late.output))}
    if done.returncode:
        raise RuntimeError(last_line(done.stderr))
    return {"seconds": time.perf_counter() - start, "stopped": False, "runs": peer_runs(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--store", type=Path, help="a store from `cnnlab kaggle prepare`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    parser.add_argument("--peer-runs", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the timed recipes")
    add_out(parser)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["auto", "default"], help="of chapter")
    parser.add_argument("--networks", nargs="+", choices=PRINTED, default=list(PRINTED), help="of chapter")
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="of the timed recipes")
    parser.add_argument("--first-seed", type=int, default=0, help="of the timed recipes")
    parser.add_argument("--label", default="", help="added to the result's name")
    parser.add_argument("--tiny", action="store_true", help="a smoke test, small enough for a CPU")
    args = parser.parse_args()
    args.peaks = None  # the GPU's, once they are measured
    found: dict[str, Any] = {}
    begin, share = time.perf_counter(), 0.0
    for part in PARTS:
        if part not in args.parts:
            continue
        share += PARTS[part] / sum(PARTS[p] for p in args.parts)
        start = time.perf_counter()
        try:
            answer = LATE if start - begin > args.seconds else globals()[part](args, begin + share * args.seconds)
        except Exception as error:  # the other parts' figures must not be lost with this one
            answer = failed(error)
            if args.tiny:
                raise
        found[part] = {"seconds": time.perf_counter() - start, "found": answer}
        print(part, f"{time.perf_counter() - start:.0f} s", flush=True)
        result: dict[str, Any] = {"tiny": args.tiny, "parts": found}
        ours, theirs = (found.get(side, {}).get("found") for side in ("cifar", "peer"))
        if isinstance(ours, dict) and isinstance(theirs, dict):
            result["beside_peer"] = compared(ours.get("speed/cifar-94"), theirs["runs"])
        path = write_result("gpu-suite" + (args.label and f"-{args.label}"), args.device, result, args.out)
    print(path)


if __name__ == "__main__":
    main()
