"""All that matters on one GPU, within ten minutes: python benchmarks/gpu_suite.py [--store STORE] [--parts ...]

Parts, each with a share of the time and written to the result as soon as it is done:

    chapter  every network of the chapter at the manual's batch and image size: images/s, wall-clock with data, beside
             the manual's printed examples/s (which leave the data out), and the share of the card's measured peak
    best     AlexNet at 224 pixels and ResNet-18 at 96, at growing batch sizes: the largest share of the peak
    d2l      d2l's own functions beside ours on this card (where d2l is in .peers/d2l, see vs_d2l.py)
    fashion  time to 94%, 95% and 96% on Fashion-MNIST, several seeds
    cifar    time to 94% and 96% on CIFAR-10, several seeds, on a validation split (needs --store)
    peer     the best published code for 94%, unmodified but for the number of runs, on the same card and the same
             split (where .peers/cifar10-airbench holds a copy of its repository; needs --store)

Clock of fashion, cifar and peer: whitening, training and the final evaluation with several looks at each image
(race_seconds of _speed.py; the peer's own clock). Outside: reading files, moving the images to the card, compilation
and a warm-up run with a seed of its own, whose seconds are reported beside (first_seconds). Accuracy is on the images
held out (a tenth, split_seed 0), for the peer too, which is given that split as its test set.

On a machine without a GPU, --tiny goes through the same parts at a reduced size.
Writes benchmarks/results/gpu-suite_HARDWARE_DATE.json.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import _speed
import vs_d2l
from _common import write_result
from cnnlab.bench import bench
from cnnlab.experiments import EXPERIMENTS
from cnnlab.recipes import RECIPES

PEER = vs_d2l.PEERS / "cifar10-airbench" / "airbench94_muon.py"
PARTS = ("chapter", "best", "d2l", "fashion", "cifar", "peer")


def chapter(args: argparse.Namespace) -> dict[str, Any]:
    printed = {RECIPES[e.recipe].model: e.examples_per_second for e in EXPERIMENTS.values()}
    networks = ["lenet-bn"] if args.tiny else list(printed)
    modes = ["off"] if args.tiny else ["off", "default"]
    found = {}
    for mode in modes:
        answer = bench(networks, device=args.device, seconds=0.5 if args.tiny else 3, accuracy=False, compile=mode)
        found[mode] = answer.to_dict()
    return {"by_compile_mode": found, "printed_examples_per_second": printed}


def best(args: argparse.Namespace) -> dict[str, Any]:
    sizes: list[tuple[str, int, tuple[int, ...]]] = [("alexnet", 224, (256, 512)), ("resnet18-manual", 96, (512, 1024))]
    if args.tiny:
        sizes = [("lenet-bn", 28, (64,))]
    return {
        f"{network}, batch {batch}": bench(
            [network], image_size=side, batch_size=batch, device=args.device, seconds=0.5 if args.tiny else 3,
            accuracy=False, compile="off" if args.tiny else "default",
        ).to_dict()
        for network, side, batches in sizes
        for batch in batches
    }  # fmt: skip


def d2l(args: argparse.Namespace) -> Any:
    if not (vs_d2l.PEERS / "d2l" / "d2l").exists():
        return "d2l is not in .peers/d2l"
    out = Path(tempfile.mkdtemp())
    options = ["--tiny"] if args.tiny else ["--pairs", "1", "--images", "10240"]
    command = [sys.executable, str(Path(vs_d2l.__file__)), *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.seconds)
    return {"command": done.args[1:], "rc": done.returncode, "output": done.stdout[-6000:] + done.stderr[-2000:]}


def race(name: str, seeds: int, settings: list[str], split: str, views: str, device: str) -> dict[str, Any]:
    """A warm-up run, which pays for compilation, and `seeds` more, all in this process."""
    recipe = RECIPES[name].with_settings(settings)
    first = _speed.child(recipe.changed(seed=1_000_000), split, views, device)
    found = _speed.runs(name, seeds, settings, split, views, device, together=True)
    return {"first_seconds": first["clock_seconds"], **found}


def fashion(args: argparse.Namespace) -> dict[str, Any]:
    if args.tiny:
        return {"speed/fashion-90": race("speed/fashion-90", 1, ["limit=500"], "test", "flip", args.device)}
    names = {"speed/fashion-94": 10, "speed/fashion-95": 5, "speed/fashion-96": 3}
    return {name: race(name, n, args.set, "test", "flip", args.device) for name, n in names.items()}


def cifar(args: argparse.Namespace) -> Any:
    if args.tiny:
        settings = ["data=digits", "limit=500", "epochs=1", "image_size=32"]
        return {"speed/cifar-90": race("speed/cifar-90", 1, settings, "validation", "shift", args.device)}
    if args.store is None:
        return "no --store"
    settings = [f"data=store:{args.store.absolute()}", *args.set]
    names = {"speed/cifar-94": 20, "speed/cifar-96": 3}
    return {name: race(name, n, settings, "validation", "shift", args.device) for name, n in names.items()}


def peer(args: argparse.Namespace) -> Any:
    """The published script, given our split as its training and test set."""
    if args.store is None or not PEER.exists():
        return "no --store" if args.store is None else f"{PEER.parent.name} is not in .peers"
    if not torch.cuda.is_available():
        return "the published code needs CUDA"
    from cnnlab.data import SourceOptions, data_folder
    from cnnlab.session import load_splits

    recipe = RECIPES["speed/cifar-94"].changed(data=f"store:{args.store.absolute()}")
    splits = load_splits(recipe, SourceOptions(data_dir=data_folder(None)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cifar10").mkdir()
        for name, images in zip(("train", "test"), splits, strict=True):
            # Its own format: images (N, H, W, C).
            content = {"images": images.images.permute(0, 2, 3, 1).contiguous(), "labels": images.labels}
            torch.save({**content, "classes": images.classes}, Path(folder) / "cifar10" / f"{name}.pt")
        text = re.sub(r"range\(200\)", f"range({args.peer_runs})", PEER.read_text())
        script = Path(folder) / PEER.name
        script.write_text(text)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, script.name], cwd=folder, capture_output=True, text=True, timeout=args.seconds
        )
    return {"rc": done.returncode, "seconds": time.perf_counter() - began, "runs": args.peer_runs,
            "output": done.stdout[-8000:] + done.stderr[-1000:]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--store", type=Path, help="what `cnnlab kaggle prepare` made")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=560, help="no part is begun after so many")
    parser.add_argument("--peer-runs", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the timed recipes")
    parser.add_argument("--out", type=Path, help="folder for the result; unsaid: benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="reduced so far that a CPU can go through it")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    began, path = time.perf_counter(), None
    for part in args.parts:
        if time.perf_counter() - began > args.seconds:
            found[part] = "no time was left"
            continue
        start = time.perf_counter()
        try:
            answer = globals()[part](args)
        except Exception as error:  # the other parts' figures must not be lost with this one
            answer = f"failed: {type(error).__name__}: {error}"
            if args.tiny:
                raise
        found[part] = {"seconds": time.perf_counter() - start, "found": answer}
        print(part, f"{time.perf_counter() - start:.0f} s", flush=True)
        path = write_result("gpu-suite", args.device, {"tiny": args.tiny, "parts": found}, args.out)
    print(path)


if __name__ == "__main__":
    main()
