"""Classify a folder of photographs: `cnnlab predict` compared with a loop with Pillow and torchvision's ImageFolder.

    python benchmarks/predict.py --work DIR [--data FOLDER] [--rounds 3] [--images 5000] [--many 100000]

DIR gets folders with `--images` and `--many` hard links to the photographs of FOLDER (default: the sign-language digits
in CNNLAB_DATA). All sides run the same network on the same folder, in turn, each in a process of its own:

    cnnlab       `cnnlab predict --out`: decodes in threads, writes CSV
    pillow       a loop: open, resize and stack with Pillow, then the network; the answers stay in memory
    torchvision  ImageFolder, DataLoader with a worker per core, then the network; the answers stay in memory

Times cover the whole classification, without imports and loading the network. Memory is that of the process and its
workers. `--many` is classified once, by cnnlab. Writes build/results/predict_HARDWARE_DATE.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from _common import Task, add_out, answered, call, spread, write_result

NETWORKS = {"lenet-bn": 32, "resnet18-small": 48}
BATCH = 64
SIDES = ("cnnlab", "pillow", "torchvision")


def fill(source: Path, folder: Path, count: int) -> None:
    """Create `count` files in class folders: hard links or, across file systems, copies."""
    if folder.exists():
        return
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number, file in zip(range(count), cycle(files), strict=False):
        there = folder / file.parent.name / f"{number:06d}{file.suffix.lower()}"
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, there)
        except OSError:
            shutil.copyfile(file, there)


def train(source: Path, network: str, runs: Path) -> Path:
    """Train for a few steps: the speed does not depend on the weights."""
    import cnnlab

    path = runs / network
    if not path.exists():
        cnnlab.train(
            data=f"folder:{source}", model=network, image_size=NETWORKS[network], epochs=1, limit=200,
            runs_dir=runs, name=network, progress="none",
        )  # fmt: skip
    return path


def by_cnnlab(task: Task) -> Task:
    from cnnlab.inference.output import save
    from cnnlab.inference.stream import predict_stream

    out = Path(task["out"])
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    saved = save(predict_stream(task["run"], [task["folder"]], threads=task["threads"]), out)
    return {"images": saved.images, "train_seconds": time.perf_counter() - start}


def network_of(task: Task) -> Any:
    import torch

    import cnnlab

    torch.set_num_threads(task["threads"])
    return cnnlab.load_model(task["run"])


def by_pillow(task: Task) -> Task:
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    classifier = network_of(task)
    p = classifier.preprocessing
    size, answers = (p.native_size, p.native_size), []
    start = time.perf_counter()
    files = sorted(file for file in Path(task["folder"]).rglob("*") if file.is_file())
    with torch.inference_mode():
        for at in range(0, len(files), BATCH):
            batch = []
            for file in files[at : at + BATCH]:
                with Image.open(file) as opened:
                    image = ImageOps.exif_transpose(opened).convert("RGB")
                    batch.append(np.asarray(ImageOps.pad(image, size, Image.Resampling.BILINEAR)))
            x = p(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous())
            answers.append(classifier(x).softmax(1).topk(3))
    return {"images": len(files), "train_seconds": time.perf_counter() - start}


def by_torchvision(task: Task) -> Task:
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    classifier = network_of(task)
    p = classifier.preprocessing
    size, answers = [p.image_size] * 2, []
    steps = [v2.Resize(size), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(p.mean, p.std)]
    start = time.perf_counter()
    images = ImageFolder(task["folder"], v2.Compose(steps))
    loader = torch.utils.data.DataLoader(images, BATCH, num_workers=task["threads"])
    with torch.inference_mode():
        for x, _ in loader:
            answers.append(classifier(x).softmax(1).topk(3))
    return {"images": len(images), "train_seconds": time.perf_counter() - start}


def measure(work: Path, source: Path, rounds: int, images: int, many: int) -> dict[str, Any]:
    from cnnlab.device.hardware import available_cores

    folder, crowd = work / str(images), work / str(many)
    fill(source, folder, images)
    fill(source, crowd, many)
    task = {"threads": available_cores(), "out": str(work / "found.csv")}
    networks = {}
    for network, size in NETWORKS.items():
        run = train(source, network, work / "runs")
        found: dict[str, list[Task]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in SIDES:
                answer = call({**task, "side": side, "run": str(run), "folder": str(folder)})
                found[side].append(answer)
                rate = answer["images"] / answer["train_seconds"]
                print(f"{network} round {number + 1}: {side} {rate:,.0f} images/s, "
                      f"{answer['peak_pss_mib']:,.0f} MiB", flush=True)  # fmt: skip
        networks[network] = {
            "image_size": size,
            "images": images,
            **{
                side: {
                    "images_per_second": spread([a["images"] / a["train_seconds"] for a in answers]),
                    "peak_pss_mib": median(a["peak_pss_mib"] for a in answers),
                }
                for side, answers in found.items()
            },
        }
    answer = call({**task, "side": "cnnlab", "run": str(work / "runs" / "lenet-bn"), "folder": str(crowd)})
    return {
        "n": rounds,
        "batch": BATCH,
        "networks": networks,
        "many": {key: answer[key] for key in ("images", "peak_pss_mib", "peak_rss_mib")}
        | {"seconds": answer["train_seconds"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--many", type=int, default=100_000)
    add_out(parser)
    args = parser.parse_args()
    from cnnlab.data import data_folder

    source = args.data or data_folder() / "sign-language-digits"
    if not source.is_dir():
        parser.error(f"{source} does not exist; name a folder of photographs with --data")
    figures = measure(args.work.absolute(), source.absolute(), args.rounds, args.images, args.many)
    print(write_result("predict", "cpu", figures, args.out))


if __name__ == "__main__":
    if not answered({"cnnlab": by_cnnlab, "pillow": by_pillow, "torchvision": by_torchvision}):
        main()
