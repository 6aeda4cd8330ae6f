"""Time to accuracy on Fashion-MNIST: python benchmarks/fashion_speed.py [--seeds 5] [--beside-d2l 5] [RECIPE...]

Each recipe from several seeds; every run is a process of its own. Two clocks:

    train_seconds   the epochs' training, wall-clock with data, nothing else
    clock_seconds   from images in memory to a finished run and its answer: building the network, the trial of the plan
                    where the recipe is long enough for one, whitening, training, validation after each epoch, saving
                    weights and curves, and the one evaluation of the test set at the end

Outside: starting Python, reading the files, compilation (none of these recipes is compiled on a CPU). The validation
split is the recipe's (a tenth of the training images, split_seed 0), and no setting was chosen by anything else. The
test set is looked at once for each seed, after its last epoch, with the weights of that epoch.

multiply_adds is the training's forward passes (the whole is about three times that), beside the manual's recipe's.
--beside-d2l N: also N pairs of d2l's own train_ch6 (BN-LeNet, 10 epochs) and speed/fashion-90, in turn, each in a
process of its own; see vs_d2l.py.

Writes benchmarks/results/fashion-speed_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA, or the network).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.runs import spread

# What the manual prints for the test set, its source for those that it does not train.
PRINTED = {
    "lenet": 0.779, "lenet-bn": 0.862, "alexnet": 0.879, "vgg11": 0.900, "nin": 0.865, "resnet18": 0.898,
    "googlenet": 0.886, "densenet": 0.885,
}  # fmt: skip
SPEED = [f"speed/fashion-{n}" for n in (90, 92, 93, 94)]
FAST = [f"fast/{name}" for name in PRINTED]


def multiply_adds(recipe: Recipe, images: int) -> float:
    """Of the forward passes of the whole training."""
    from cnnlab.models import build_model
    from cnnlab.probe import operations

    size = recipe.image_size or 28
    return operations(lambda: build_model(recipe.model, image_size=size), (1, size, size)) / 6 * images * recipe.epochs


def child(name: str, seed: int, settings: list[str], views: str, device: str) -> dict[str, Any]:
    """One run: train, then look at the test set once."""
    import cnnlab
    from cnnlab import training

    train, spans = training._train, []

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        answer = train(*args)
        spans.append(time.perf_counter() - began)
        return answer

    vars(training)["_train"] = timed
    recipe = RECIPES[name].with_settings(settings).changed(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        result = cnnlab.train(recipe, runs_dir=folder, progress="none", device=device)
        began = time.perf_counter()
        test = cnnlab.evaluate_run(result.run.path, split="test", weights="last", views=views, device=device)
        test_seconds = time.perf_counter() - began
        session = json.loads((result.run.path / "environment.json").read_text())["sessions"][0]
    s = result.summary
    return {
        "seed": seed,
        "val_acc": s["val_acc"],
        "test_acc": test.result.accuracy,
        "views": views,
        "train_seconds": s["train_seconds"],
        "clock_seconds": sum(spans) + test_seconds,
        "images_per_second": s["images_per_second"],
        "images": s["images"]["train"],
        "plan": {key: session[key] for key in ("dtype", "memory_format", "compile", "threads", "plan")},
    }


def run(name: str, seed: int, settings: list[str], views: str, device: str) -> dict[str, Any]:
    """`child` in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [sys.executable, __file__, name, "--child", str(seed), "--answer", answer.name, "--views", views]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run([*command, "--device", device], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        told: dict[str, Any] = json.loads(Path(answer.name).read_text())
        return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[*SPEED, *FAST])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--beside-d2l", type=int, default=0, metavar="PAIRS")
    parser.add_argument("--views", help="looks at each test image; unsaid: flip for speed/*, none for fast/*")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder for the result; unsaid: benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="a few hundred images: to see that it works")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = [*args.set, *(["limit=500"] if args.tiny else [])]
    if args.child is not None:
        told = child(args.recipes[0], args.child, settings, args.views, args.device)
        Path(args.answer).write_text(json.dumps(told))
        return
    if args.tiny:
        args.recipes, args.seeds = ["speed/fashion-90", "fast/lenet-bn"], 1
    figures: dict[str, Any] = {}
    for name in args.recipes:
        views = args.views or ("flip" if RECIPES[name].flip else "none")
        per_seed = []
        for seed in range(args.seeds):
            per_seed.append(run(name, seed, settings, views, args.device))
            r = per_seed[-1]
            print(
                f"{name} seed {seed}: val acc {r['val_acc']:.4f}, test acc {r['test_acc']:.4f}, training "
                f"{r['train_seconds']:.1f} s, whole clock {r['clock_seconds']:.1f} s",
                flush=True,
            )
        keys = ("val_acc", "test_acc", "train_seconds", "clock_seconds", "images_per_second")
        recipe = RECIPES[name].with_settings(settings)
        figures[name] = {
            "recipe": recipe.to_dict(),
            **{key: spread([r[key] for r in per_seed]) for key in keys},
            "multiply_adds": multiply_adds(recipe, per_seed[0]["images"]),
            "per_seed": per_seed,
        }
        network = name.removeprefix("fast/")
        if network in PRINTED:
            manual = RECIPES[f"manual/{network}"]
            figures[name]["printed_test_acc"] = PRINTED[network]
            figures[name]["manual_multiply_adds"] = multiply_adds(manual, 60_000)
            share = figures[name]["manual_multiply_adds"] / figures[name]["multiply_adds"]
            print(f"{name}: 1/{share:.0f} of the manual's multiply-adds", flush=True)
    beside = None
    if args.beside_d2l:
        import vs_d2l

        vs_d2l.ensure_installed()
        pairs = []
        for number in range(args.beside_d2l):
            theirs = vs_d2l.measure("d2l", "lenet-bn", 10)
            ours = run("speed/fashion-90", number, settings, "none", args.device)
            pairs.append({"d2l": theirs, "cnnlab": ours, "ratio": theirs["seconds"] / ours["clock_seconds"]})
            print(
                f"pair {number + 1}: d2l's BN-LeNet, 10 epochs {theirs['seconds']:.1f} s; speed/fashion-90 "
                f"{ours['clock_seconds']:.1f} s, test acc {ours['test_acc']:.4f}: 1/{pairs[-1]['ratio']:.1f}",
                flush=True,
            )
        ratios = [p["ratio"] for p in pairs]
        beside = {"ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)}, "pairs": pairs}
    from _common import write_result

    found = {"n": args.seeds, "split_seed": 0, "val_fraction": 0.1, "recipes": figures, "beside_d2l": beside}
    print(write_result("fashion-speed", args.device, found, args.out))


if __name__ == "__main__":
    main()
