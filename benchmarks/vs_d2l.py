"""The d2l package's train_ch6 on its own loader against ours: the same network, recipe and data, in turn.

    python benchmarks/vs_d2l.py [--networks lenet-bn lenet] [--epochs 2] [--pairs 5]

Installs d2l 0.17.6 without its pins (they cannot be met on a current Python) into .peers/d2l, which git ignores; none
of its code is ours or committed. Each run is a process of its own: d2l, ours, d2l, ours, ... What is timed:

    d2l     the call of train_ch6: training with its DataLoader (4 workers), evaluation each epoch, its drawing
    cnnlab  what lies between a built model and a finished run (training._fit): training, evaluation each epoch,
            saving weights, checkpoint and metrics each epoch, TensorBoard events, the curve

Loading the data set once is outside both, and inside `process_seconds`. Memory is the peak over the whole process
tree, workers included, sampled four times a second: PSS, which counts shared pages once, and the plain sum of RSS.
This parent process does not import torch before it has measured: pages that it shared would be taken off the children.

Writes benchmarks/results/vs-d2l_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA) and psutil.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".peers"
D2L = "d2l==0.17.6"
RECIPES = {"lenet": "manual/lenet", "lenet-bn": "manual/lenet-bn"}


def install() -> None:
    """Bring the peer into its own folder, and its data where it looks for them: ../data of its working folder."""
    target = PEERS / "d2l"
    if not (target / "d2l").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
        subprocess.run([*pip, "--no-deps", D2L], check=True)
        subprocess.run([*pip, "pandas", "ipython", "requests", "matplotlib-inline"], check=True)
    from cnnlab.data import data_folder, load_images

    load_images("fashion-mnist", "train")  # downloads what is missing, checks the rest
    load_images("fashion-mnist", "test")
    raw = PEERS / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in (data_folder() / "FashionMNIST" / "raw").glob("*.gz"):
        if not (raw / file.name).exists():
            shutil.copy(file, raw)
    (PEERS / "work").mkdir(exist_ok=True)


def child_d2l(network: str, epochs: int) -> dict[str, Any]:
    sys.path.append(str(PEERS / "d2l"))  # behind ours: torch, numpy and matplotlib are the same for both
    os.chdir(PEERS / "work")
    from d2l import torch as d2l

    from cnnlab.models import build_model
    from cnnlab.recipes import RECIPES as ALL

    recipe = ALL[RECIPES[network]]
    net = build_model(network, num_classes=10, in_channels=1, image_size=28)
    train_iter, test_iter = d2l.load_data_fashion_mnist(recipe.batch_size)
    began = time.perf_counter()
    d2l.train_ch6(net, train_iter, test_iter, epochs, recipe.learning_rate, d2l.try_gpu())
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "images": epochs * len(train_iter.dataset)}


def child_cnnlab(network: str, epochs: int) -> dict[str, Any]:
    import cnnlab
    from cnnlab import training

    fit, spans = training._fit, []

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        answer = fit(*args)
        spans.append(time.perf_counter() - began)
        return answer

    vars(training)["_fit"] = timed
    recipe = cnnlab.RECIPES[RECIPES[network]].changed(epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        result = cnnlab.train(recipe, runs_dir=folder)
        rows = result.run.metrics()
    s = result.summary
    return {
        "seconds": sum(spans),
        "images": sum(row["images"] for row in rows),
        "loss": s["loss"],
        "train_acc": s["train_acc"],
        "test_acc": s["test_acc"],
    }


def measure(side: str, network: str, epochs: int) -> dict[str, Any]:
    """Run one side in a process of its own; returns what it told, its wall-clock and its tree's peak memory."""
    import psutil

    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [sys.executable, __file__, "--child", side, "--networks", network, "--epochs", str(epochs)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--answer", answer.name],
            env={**os.environ, "MPLBACKEND": "Agg"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        root = psutil.Process(process.pid)
        peak_pss = peak_rss = 0
        while process.poll() is None:
            pss = rss = 0
            # A worker may end between the listing and the look.
            with contextlib.suppress(psutil.Error):
                for p in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        memory = p.memory_full_info()
                        pss, rss = pss + memory.pss, rss + memory.rss
            peak_pss, peak_rss = max(peak_pss, pss), max(peak_rss, rss)
            time.sleep(0.25)
        seconds = time.perf_counter() - began
        assert process.stdout is not None
        output = process.stdout.read().decode(errors="replace")
        if process.returncode != 0:
            raise SystemExit(f"{side} failed:\n{output[-3000:]}")
        told: dict[str, Any] = json.loads(Path(answer.name).read_text())
    return {
        **told,
        "images_per_second": told["images"] / told["seconds"],
        "process_seconds": seconds,
        "peak_pss_mib": peak_pss / 2**20,
        "peak_rss_mib": peak_rss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["lenet-bn", "lenet"], choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--child", choices=("install", "d2l", "cnnlab"), help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "install":
        install()
        return
    if args.child:
        run = child_d2l if args.child == "d2l" else child_cnnlab
        Path(args.answer).write_text(json.dumps(run(args.networks[0], args.epochs)))
        return

    subprocess.run([sys.executable, __file__, "--child", "install"], check=True)
    figures = {}
    for network in args.networks:
        pairs = []
        for number in range(args.pairs):
            pair: dict[str, Any] = {side: measure(side, network, args.epochs) for side in ("d2l", "cnnlab")}
            pair["ratio"] = pair["cnnlab"]["images_per_second"] / pair["d2l"]["images_per_second"]
            pairs.append(pair)
            print(
                f"{network} pair {number + 1}: d2l {pair['d2l']['images_per_second']:,.0f} images/s "
                f"{pair['d2l']['peak_pss_mib']:,.0f} MiB, cnnlab {pair['cnnlab']['images_per_second']:,.0f} images/s "
                f"{pair['cnnlab']['peak_pss_mib']:,.0f} MiB, ratio {pair['ratio']:.2f}",
                flush=True,
            )
        ratios = sorted(p["ratio"] for p in pairs)
        memory = {
            kind: {side: median(p[side][kind] for p in pairs) for side in ("d2l", "cnnlab")}
            for kind in ("peak_pss_mib", "peak_rss_mib")
        }
        figures[network] = {
            "speed_ratio": {"median": median(ratios), "min": ratios[0], "max": ratios[-1]},
            "process_ratio_median": median(p["d2l"]["process_seconds"] / p["cnnlab"]["process_seconds"] for p in pairs),
            **memory,
            "pairs": pairs,
        }
        print(
            f"{network}: cnnlab is {median(ratios):.2f} times as fast as d2l (median of {args.pairs} pairs, "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}), wall-clock with data; peak memory of the process tree "
            f"{memory['peak_pss_mib']['cnnlab']:,.0f} MiB against {memory['peak_pss_mib']['d2l']:,.0f} MiB (PSS)",
            flush=True,
        )
    from _common import write_result

    print(write_result("vs-d2l", "auto", {"peer": D2L, "epochs": args.epochs, "n": args.pairs, "networks": figures}))


if __name__ == "__main__":
    main()
