"""Shared by the benchmark scripts: measured processes, cnnlab's side, the machine's peak, and writing results.

torch is not imported at the top: a parent that measures memory must not share pages with its children.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "benchmarks" / "results"
"""The committed results, from which benchmarks/tables.py writes the tables of the pages."""
OUT = ROOT / "build" / "results"
"""The default folder of a result. Git ignores it, so your own results change no page and no test."""
PEERS = ROOT / ".peers"
Task = dict[str, Any]


def commit() -> str | None:
    """Return the measured commit, with "+" if src/ has uncommitted changes; None without git.

    CNNLAB_COMMIT names the commit of a copy that has no history.
    """
    if given := os.environ.get("CNNLAB_COMMIT"):
        return given
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(ROOT / "benchmarks")]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "../src"], capture_output=True, text=True).stdout
    return head + ("+" if changed else "") if head else None


def write_result(name: str, device: str, figures: dict[str, Any], out: Path = OUT) -> Path:
    """Write NAME_HARDWARE_DATE.json to the folder `out`: figures, command, commit, hardware, versions and date."""
    from cnnlab.device.hardware import available_cores, pick_device
    from cnnlab.io.files import write_json
    from cnnlab.training.plan import Plan

    env = Plan(threads=available_cores()).environment(pick_device(device))
    hardware = re.sub(
        r"[^a-z0-9]+", "-", f"{env['device_name']}-{env['cpu_capability']}-{env['cores']}-cores".lower()
    ).strip("-")
    if env["device"].startswith("cuda"):
        hardware = re.sub(r"[^a-z0-9]+", "-", env["device_name"].lower()).strip("-")
    path = out / f"{name}_{hardware}_{datetime.now(UTC):%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep only the last part of this machine's paths.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *words])
    write_json(path, {"benchmark": name, "command": command, "commit": commit(), "environment": env, **figures})
    return path


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out, the folder of the result."""
    text = "folder of the result. Default: build/results; use benchmarks/results for one to publish"
    parser.add_argument("--out", type=Path, default=OUT, help=text)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


# Processes: the script calls itself with a task, and the child writes its answer to a file.


def call(task: Task, script: str | None = None) -> Task:
    """Run `task` in a process of `script` (default: this one). Return its answer, wall-clock time and peak memory.

    Memory is that of the process tree, workers included, sampled once a second (for 2 GiB, a sample takes 25 ms on one
    core): PSS, which counts shared pages once, and the sum of RSS.
    """
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        answer, output = Path(folder) / "answer.json", Path(folder) / "output"
        start = time.perf_counter()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, script or sys.argv[0], "--child", json.dumps(task), str(answer)],
                env={**os.environ, "MPLBACKEND": "Agg"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        root = psutil.Process(process.pid)
        peak_pss = peak_rss = 0
        while process.poll() is None:
            pss = rss = 0
            # A worker may end between being listed and being measured.
            with contextlib.suppress(psutil.Error):
                for p in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        memory = p.memory_full_info()
                        pss, rss = pss + memory.pss, rss + memory.rss
            peak_pss, peak_rss = max(peak_pss, pss), max(peak_rss, rss)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            raise SystemExit(f"{task['side']} failed:\n{output.read_text(errors='replace')[-3000:]}")
        result: Task = json.loads(answer.read_text())
    figures = {"process_seconds": seconds, "peak_pss_mib": peak_pss / 2**20, "peak_rss_mib": peak_rss / 2**20}
    return {**result, **figures}


def call_each(tasks: Sequence[Task], *, together: bool = False) -> Task:
    """Run the tasks one after the other, each in its own process. Return the answers by side.

    together: run all in one process, whose time and memory then count for each.
    """
    if together:
        shared = call({"side": "several", "tasks": tasks})
        answers = [{**answer, **shared} for answer in shared.pop("answers")]
    else:
        answers = [call(task) for task in tasks]
    for answer in answers:
        answer["images_per_second"] = answer["images"] / answer["train_seconds"]
    return {task["side"]: answer for task, answer in zip(tasks, answers, strict=True)}


def answered(children: Mapping[str, Callable[[Task], Task]]) -> bool:
    """In a child process, do the task, write the answer and return True. In the parent, return False."""
    if sys.argv[1:2] != ["--child"]:
        return False
    task = json.loads(sys.argv[2])
    if task["side"] == "several":
        result: Task = {"answers": [children[t["side"]](t) for t in task["tasks"]]}
    else:
        result = children[task["side"]](task)
    Path(sys.argv[3]).write_text(json.dumps(result))
    return True


# Shared by the child processes.


def present() -> bool:
    """Return whether Fashion-MNIST is here, so that nothing has to be downloaded."""
    from cnnlab.data import data_folder, named

    return named.is_there("fashion-mnist", data_folder())


def matrix_peak() -> dict[str, float]:
    """Return the floating-point operations per second of a large matrix product in each precision."""
    import torch

    from cnnlab.device.hardware import available_cores, has_bfloat16, pick_device
    from cnnlab.machine.peak import peak

    device = pick_device("auto")
    kinds = (torch.float32, *([torch.bfloat16] if has_bfloat16(device) else []))
    return {
        str(kind).removeprefix("torch."): peak(device, kind, available_cores())["flops_per_second"] for kind in kinds
    }


def fixed_plan(recipe: Task, count: int, image_size: int) -> Task:
    """Return the plan that `cnnlab train` would choose for `count` images here, and the recipe with that plan fixed.

    A run of a few steps does not try out which memory format is faster; ten epochs do (autotune.py). So the plan is
    measured here for the whole recipe, outside every clock. Nothing is compiled, which would take longer than the
    benchmark; on CUDA, steps are recorded, as by default.
    """
    from unittest.mock import patch

    from cnnlab.device.hardware import pick_device
    from cnnlab.models import build_model
    from cnnlab.recipe import Recipe
    from cnnlab.training.autotune import choose_plan
    from cnnlab.training.plan import Workload, operations

    device = pick_device("auto")
    uncompiled = Recipe.from_dict(recipe).changed(compile="record" if device.type == "cuda" else "off")
    shape = (1, image_size, image_size)

    def build() -> Any:
        return build_model(uncompiled.model, num_classes=10, in_channels=1, image_size=image_size)

    start = time.perf_counter()
    # An empty cache: plans measured on another day must not be used.
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        plan = choose_plan(Workload(uncompiled, build, shape, 10, device, count), log=lambda _: None)
    values = plan.values
    return {
        "recipe": uncompiled.changed(memory_format=values["memory_format"], precision=values["dtype"]).to_dict(),
        "threads": plan.threads,
        "plan": {**values, "why": plan.why, "seconds": time.perf_counter() - start},
        "operations": operations(build, shape),
    }


def fixed_plans(recipe: Task, count: int, image_size: int) -> dict[str, Task]:
    """Return `fixed_plan` for both of our sides: in float32, and with precision=auto."""
    return {
        side: fixed_plan({**recipe, "precision": precision}, count, image_size)
        for side, precision in (("cnnlab", "float32"), ("cnnlab-auto", "auto"))
    }


def prepare(networks: Sequence[str], tiny: bool) -> Task | None:
    """Run the side `prepare` and print the peaks. Return the answer, or None if a tiny run is skipped."""
    ready = call({"side": "prepare", "networks": networks, "tiny": tiny})
    if "skipped" in ready:
        print(f"skipped: {ready['skipped']}")
        return None
    for side, why in ready.get("left_out", {}).items():
        print(f"{side} is left out: {why}", flush=True)
    print(
        "peak:", ", ".join(f"{kind} {value / 1e9:,.0f} GFLOP/s" for kind, value in ready["peaks"].items()), flush=True
    )
    return ready


def run_rounds(
    network: str, sides: Sequence[str], setup: dict[str, Task], shared: Task, epochs: int, args: argparse.Namespace
) -> list[Task]:
    """Run every side `args.pairs` times, in turn. Return the answers by side, one dictionary per round."""
    rounds = []
    for number in range(args.pairs):
        tasks = []
        for side in sides:
            ours = setup.get(side, setup["cnnlab"])
            recipe = {**ours["recipe"], "epochs": epochs}
            tasks.append({**shared, "side": side, "recipe": recipe, "threads": ours["threads"]})
        runs = call_each(tasks, together=args.tiny)
        text = (
            f"{side} {run['images_per_second']:,.1f} images/s in {run['process_seconds']:.0f} s, "
            f"{run['peak_pss_mib']:,.0f} MiB"
            for side, run in runs.items()
        )
        print(f"{network} round {number + 1}: {'; '.join(text)}", flush=True)
        rounds.append(runs)
    return rounds


def comparison_parser(doc: str | None, networks: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options that the comparisons share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=networks, metavar="NETWORK", help=", ".join(networks))
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side. Default: 3")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: one network, one run, nothing downloaded")
    add_out(parser)
    return parser


def warm_up_gpu() -> None:
    """Load a GPU's libraries, which takes a second, outside every clock."""
    import torch

    if torch.cuda.is_available():
        layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2)).cuda()
        layers(torch.rand(2, 1, 8, 8, device="cuda")).sum().backward()
        torch.cuda.synchronize()


def child_cnnlab(task: Task) -> Task:
    """Train our side with task["recipe"] on task["images"] images (0: all); evaluate on task["eval_images"].

    Return `seconds`, for training, evaluation and finishing the run, and `train_seconds`, for training including data.
    """
    import cnnlab
    from cnnlab.data import SourceOptions, data_folder
    from cnnlab.data.splits import limited, load_splits

    recipe = cnnlab.Recipe.from_dict(task["recipe"])
    sets, counts = load_splits(recipe, SourceOptions(data_dir=data_folder())), (task["images"], task["eval_images"])
    train_set, test_set = (limited(s, replace(recipe, limit=n)) for s, n in zip(sets, counts, strict=True))
    warm_up_gpu()
    with tempfile.TemporaryDirectory() as folder:
        result = cnnlab.train(recipe, data=(train_set, test_set), runs_dir=folder, threads=task["threads"])
        rows = result.history
    s = result.summary
    return {
        "seconds": result.timings["training"] + result.timings["finish"],
        "train_seconds": sum(row["train_seconds"] for row in rows),
        "images": sum(row["images"] for row in rows),
        "loss": s["loss"],
        "train_acc": s["train_acc"],
        "test_acc": s["test_acc"],
    }


def summary(pairs: list[Task], peer: str, setup: dict[str, Task], peaks: dict[str, float]) -> Task:
    """Return the figures of the `pairs` of runs. A ratio above 1 means that cnnlab is faster."""

    def ratios(ours: str, key: str) -> list[float]:
        if key == "process_seconds":
            return [p[peer][key] / p[ours][key] for p in pairs]
        return [p[peer][key] / p[peer]["images"] / (p[ours][key] / p[ours]["images"]) for p in pairs]

    sides = list(pairs[0])
    speed = {side: median(p[side]["images_per_second"] for p in pairs) for side in sides}
    kinds = {
        side: setup[side]["plan"]["dtype"] if side in setup else pairs[0][side].get("precision", "float32")
        for side in sides
    }
    operations = setup["cnnlab"]["operations"]
    return {
        "speed_ratio": spread(ratios("cnnlab", "train_seconds")),
        "speed_ratio_auto": spread(ratios("cnnlab-auto", "train_seconds")),
        "whole_ratio": spread(ratios("cnnlab", "seconds")),
        "whole_ratio_auto": spread(ratios("cnnlab-auto", "seconds")),
        "process_ratio_median": median(ratios("cnnlab", "process_seconds")),
        "process_ratio_auto_median": median(ratios("cnnlab-auto", "process_seconds")),
        "images_per_second": speed,
        "operations_per_image": operations,
        "share_of_peak": {side: operations * speed[side] / peaks[kinds[side]] for side in sides},
        **{k: {side: median(p[side][k] for p in pairs) for side in sides} for k in ("peak_pss_mib", "peak_rss_mib")},
    }


def report(network: str, figures: Task, setup: dict[str, Task], n: int) -> str:
    """Return a network's figures, one line for each of our sides."""
    lines = []
    for side, suffix in (("cnnlab", ""), ("cnnlab-auto", "_auto")):
        ratio, whole = figures[f"speed_ratio{suffix}"], figures[f"whole_ratio{suffix}"]
        plan = setup[side]["plan"]
        lines.append(
            f"{network}, {side} ({plan['dtype']}, {plan['memory_format']}): {ratio['median']:.2f} times as fast "
            f"({ratio['min']:.2f} to {ratio['max']:.2f}, n={n}), with evaluation and saving {whole['median']:.2f}; "
            f"{figures['images_per_second'][side]:,.0f} images/s, {figures['share_of_peak'][side]:.0%} of the peak"
        )
    return "\n".join(lines)
