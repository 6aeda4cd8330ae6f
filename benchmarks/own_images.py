"""Compare ways to train on a folder of images in about the same time.

    python benchmarks/own_images.py prepare WORK          # writes the folders, from CNNLAB_DATA
    python benchmarks/own_images.py run WORK [--sets ...] [--ways ...] [--seeds 3] [--cores 0 1]

Sets: photographs of sign-language digits, 5,000 images of CIFAR-10, and 6,000 of Fashion-MNIST. Each has two cuts of
the same size: one in which the most common class has twenty times as many images as the rarest, and one with classes
of equal size, for `images` and `finetune` only. All are PNG or JPEG files in class folders. The test part has about
the same number of images of every class and is used once, at the end of a training.

Ways: `lenet-bn` was the default of cnnlab before 2026-11-29. `images`, which starts from random weights, and
`finetune`, from published ones, are the recipes from which `cnnlab train --data folder:PATH` chooses. `fastai` is
fastai's vision_learner without a download, and `torchvision` is a loop with the settings of torchvision's reference
scripts, both with ResNet-18 from random weights. A peer trains for as many epochs as fit into the CPU time of `images`
on the same set with the same seed.

Each training runs in its own process on one core, so CPU time is what counts. Each core of --cores runs one training at
a time. A training is one file in WORK/rows. Those that exist there, or in the newest published result of the same kind
of processor, are not trained again. `run` then writes build/results/own-images_HARDWARE_DATE.json. fastai must be
installed in `.peers/fastai`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from _common import PEERS, Task, add_out, answered, call, commit, write_result
from cnnlab.device.hardware import environment, pick_device

SETS = ("sign", "cifar", "fashion")
CUTS = tuple(f"{name}-imbalanced" for name in SETS)
FEW = tuple(f"{name}-few" for name in SETS)
OURS = ("lenet-bn", "images", "finetune")
PEER_WAYS = ("fastai", "torchvision")
WAYS = OURS + PEER_WAYS
RATIO = 20  # images of the most common class per image of the rarest, in the imbalanced cuts
BATCH = 64  # the peers' batch size
PUBLISHED = Path(__file__).parent / "results"
SIDE = 64  # the peers' image size in pixels: fastai's and torchvision's networks are made for large images


def prepare(work: Path) -> None:
    """Write WORK/SET/train and WORK/SET/test for each set that does not exist."""
    from cnnlab.data import data_folder

    data = data_folder()
    for name, source in (("sign", _sign), ("cifar", _cifar), ("fashion", _fashion)):
        if (work / name).exists():
            continue
        print(f"writing {work / name}", flush=True)
        part = work / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        for split, label, file, content in source(data):
            path = part / split / label / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        part.rename(work / name)
    for name in SETS:
        classes = len(list((work / name / "train").iterdir()))
        shares = [RATIO ** (-place / (classes - 1)) for place in range(classes)]
        if not (cut := work / f"{name}-imbalanced").exists():
            _cut(work / name, cut, shares)
        if not (few := work / f"{name}-few").exists():
            _cut(work / name, few, [mean(shares)] * classes)


def _sign(data: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (split, class, file name, content). A quarter of each class is the test part."""
    for folder in sorted((data / "sign-language-digits").iterdir()):
        files = sorted(folder.glob("*.jpg"))
        order = np.random.default_rng(0).permutation(len(files))
        for place, i in enumerate(order):
            split = "test" if place < len(files) // 4 else "train"
            yield split, folder.name, files[i].name, files[i].read_bytes()


def _cifar(data: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield 500 training and 500 test images of each class, from the labelled images of the competition."""
    from cnnlab.data.archives import open_archive

    with (data / "cifar-10" / "trainLabels.csv").open(newline="") as file:
        labels = {row["id"]: row["label"] for row in csv.DictReader(file)}
    place: dict[str, tuple[str, str]] = {}
    rng = np.random.default_rng(0)
    for name in sorted(set(labels.values())):
        ids = [i for i, label in labels.items() if label == name]
        for n, i in enumerate(rng.permutation(len(ids))[:1000]):
            place[ids[i]] = ("train" if n < 500 else "test", name)
    archive = open_archive(data / "cifar-10" / "train.7z")
    wanted = {i for i, member in enumerate(archive.members) if Path(member.name).stem in place}
    for i, content in archive.read(wanted):
        stem = Path(archive.members[i].name).stem
        split, name = place[stem]
        yield split, name, f"{stem}.png", content
    archive.close()


def _fashion(data: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield 600 training images of each class, from the 60,000, and all 10,000 test images."""
    from PIL import Image

    from cnnlab.data import SourceOptions, load_images, stratified_subset

    for split in ("train", "test"):
        images = load_images("fashion-mnist", split, SourceOptions(data_dir=data))
        assert images is not None
        chosen = stratified_subset(images.labels, 6000, 0).tolist() if split == "train" else range(len(images))
        for i in chosen:
            out = io.BytesIO()
            Image.fromarray(images.images[i][0].numpy()).save(out, "PNG")
            yield split, images.classes[int(images.labels[i])].replace("/", "-"), f"{i}.png", out.getvalue()


def _cut(whole: Path, cut: Path, shares: Sequence[float]) -> None:
    """Copy a set with fewer training images: shares of the rarest class's size, assigned to the classes at random."""
    part = cut.with_name(f"{cut.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(whole / "test", part / "test")
    folders = sorted((whole / "train").iterdir())
    order = np.random.default_rng(0).permutation(len(folders))
    fewest = min(len(list(folder.iterdir())) for folder in folders)
    for k, share in zip(order, shares, strict=True):
        files = sorted(folders[k].iterdir())
        count = round(fewest * share)
        for i in np.random.default_rng(k).permutation(len(files))[:count]:
            target = part / "train" / folders[k].name / files[i].name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[i], target)
    part.rename(cut)


# The child processes. Each returns accuracy and balanced accuracy on the test part, and CPU seconds of training.


def child_cnnlab(task: Task) -> Task:
    import cnnlab
    from cnnlab.inference import evaluate_run

    settings: Task = {"seed": task["seed"]}
    if task["side"] == "lenet-bn":
        settings |= {
            "model": "lenet-bn", "epochs": 30, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.05,
            "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "schedule": "one-cycle", "flip": True,
            "val_fraction": 0.2,
        }  # fmt: skip
    if task["imbalanced"] and task["side"] != "lenet-bn":
        settings |= {"balance": "weights", "select": "balanced_accuracy"}
    recipe = "own" if task["side"] == "lenet-bn" else task["side"]
    start = time.process_time()
    result = cnnlab.train(recipe, data=f"folder:{task['folder']}", runs_dir=task["runs"], progress="lines", **settings)
    seconds = time.process_time() - start
    measured = evaluate_run(result.run, split="test").result
    return {
        "accuracy": measured.accuracy,
        "balanced_accuracy": measured.balanced_accuracy,
        "cpu_seconds": seconds,
        "epochs": result.summary["epochs"],
        "model": result.summary["model"],
        "recipe": result.summary["recipe"],
    }


def _figures(predicted: np.ndarray, true: np.ndarray) -> Task:
    recalls = [float((predicted[true == k] == k).mean()) for k in np.unique(true)]
    return {"accuracy": float((predicted == true).mean()), "balanced_accuracy": mean(recalls)}


def child_fastai(task: Task) -> Task:
    sys.path.insert(0, str(PEERS / "fastai"))
    import fastai
    from fastai.vision.all import (
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        parent_label,
        resnet18,
        set_seed,
        vision_learner,
    )

    set_seed(task["seed"], reproducible=True)
    folder = Path(task["folder"])
    loaders = ImageDataLoaders.from_path_func(
        folder, get_image_files(folder / "train"), parent_label, valid_pct=0.2, seed=task["seed"], bs=BATCH,
        item_tfms=Resize(SIDE), batch_tfms=aug_transforms(), num_workers=0,
    )  # fmt: skip

    def fit(epochs: int) -> Any:
        learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
        learner.fit_one_cycle(epochs)
        return learner

    learner, epochs, seconds = _fit_in(task["cpu_seconds"], fit)
    files = get_image_files(folder / "test")
    probabilities, _ = learner.get_preds(dl=loaders.test_dl(files))
    names = list(loaders.vocab)
    true = np.array([names.index(file.parent.name) for file in files])
    figures = _figures(probabilities.argmax(1).numpy(), true)
    return {**figures, "cpu_seconds": seconds, "epochs": epochs, "version": fastai.__version__}


def child_torchvision(task: Task) -> Task:
    import torchvision
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import transforms as t

    torch.manual_seed(task["seed"])
    folder = Path(task["folder"])
    standard = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    augmented = t.Compose([t.RandomResizedCrop(SIDE), t.RandomHorizontalFlip(), t.ToTensor(), standard])
    plain = t.Compose([t.Resize(SIDE * 8 // 7), t.CenterCrop(SIDE), t.ToTensor(), standard])
    train = torchvision.datasets.ImageFolder(folder / "train", augmented)
    test = torchvision.datasets.ImageFolder(folder / "test", plain)
    loader = DataLoader(train, BATCH, shuffle=True, drop_last=len(train) > BATCH)

    def fit(epochs: int) -> nn.Module:
        model: nn.Module = torchvision.models.resnet18(num_classes=len(train.classes))
        optimizer = torch.optim.SGD(model.parameters(), 0.1 * BATCH / 256, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for x, y in loader:
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        model.eval()
        return model

    model, epochs, seconds = _fit_in(task["cpu_seconds"], fit)
    with torch.inference_mode():
        predicted = torch.cat([model(x).argmax(1) for x, _ in DataLoader(test, 256)]).numpy()
    figures = _figures(predicted, np.array(test.targets))
    return {**figures, "cpu_seconds": seconds, "epochs": epochs, "version": torchvision.__version__}


def _fit_in(budget: float, fit: Callable[[int], Any]) -> tuple[Any, int, float]:
    """Train for as many epochs as fit into `budget` CPU seconds. Return the model, the epochs and the seconds taken.

    First, an epoch is timed in a training that is thrown away and not counted.
    """
    start = time.process_time()
    fit(1)
    epochs = max(1, round(budget / (time.process_time() - start)))
    start = time.process_time()
    return fit(epochs), epochs, time.process_time() - start


def _on_core(child: Callable[[Task], Task]) -> Callable[[Task], Task]:
    """Wrap `child` to run with one thread on the core that its task names."""

    def run(task: Task) -> Task:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {task["core"]})
        torch.set_num_threads(1)
        return child(task)

    return run


CHILDREN = {
    **dict.fromkeys(OURS, _on_core(child_cnnlab)),
    "fastai": _on_core(child_fastai),
    "torchvision": _on_core(child_torchvision),
}


def restore(rows: Path) -> None:
    """Write missing rows from the newest published result of the same kind of processor."""
    here = environment(pick_device("cpu"))
    found = [json.loads(file.read_text()) for file in PUBLISHED.glob("own-images_*.json")]
    like_this = [f for f in found if all(f["environment"][k] == here[k] for k in ("device_name", "cpu_capability"))]
    for result in sorted(like_this, key=lambda result: result["environment"]["date"])[-1:]:
        for row in (row for ways in result["sets"].values() for way in ways.values() for row in way["per_seed"]):
            file = rows / f"{row['set']} {row['way']} {row['seed']}.json"
            if not file.exists():
                file.write_text(json.dumps(row, indent=1))


def run(args: argparse.Namespace) -> None:
    rows = args.work / "rows"
    rows.mkdir(exist_ok=True)
    restore(rows)
    cores: Queue[int] = Queue()
    for core in args.cores:
        cores.put(core)

    def train(name: str, way: str, seed: int) -> None:
        file = rows / f"{name} {way} {seed}.json"
        if file.exists():
            return
        core = cores.get()
        try:
            task: Task = {
                "side": way, "folder": str(args.work / name), "seed": seed, "core": core,
                "imbalanced": name in CUTS, "runs": str(args.work / "runs"),
            }  # fmt: skip
            if way in PEER_WAYS:
                task["cpu_seconds"] = json.loads((rows / f"{name} images {seed}.json").read_text())["cpu_seconds"]
            row = {"set": name, "way": way, "seed": seed, "commit": commit(), **call(task)}
        finally:
            cores.put(core)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(row, indent=1))
        part.rename(file)
        print(
            f"{file.stem}: accuracy {row['accuracy']:.4f}, balanced {row['balanced_accuracy']:.4f}, "
            f"{row['epochs']} epochs in {row['cpu_seconds']:.0f} s of CPU time",
            flush=True,
        )

    for ways in (OURS, PEER_WAYS):  # peers come second: they get the time that `images` took
        with ThreadPoolExecutor(len(args.cores)) as pool:
            tasks = [
                (name, way, seed)
                for seed in range(args.seeds)
                for way in ways
                for name in args.sets
                if way in args.ways and (name not in FEW or way in ("images", "finetune"))
            ]
            list(pool.map(lambda task: train(*task), tasks))
    # Do not publish paths of this machine.
    finished = [json.loads(file.read_text().replace(str(args.work), "WORK")) for file in sorted(rows.glob("*.json"))]
    images = {
        name: {split: sum(1 for _ in (args.work / name / split).glob("*/*")) for split in ("train", "test")}
        for name in (*SETS, *CUTS, *FEW)
        if (args.work / name).exists()
    }
    figures = {"ways": list(WAYS), "images": images, "sets": _summary(finished)}
    print(write_result("own-images", "cpu", figures, args.out))


def _summary(rows: list[Task]) -> dict[str, dict[str, Task]]:
    """Return means and standard deviations over the seeds, by set and way."""
    found: dict[str, dict[str, Task]] = {}
    for name in (*SETS, *CUTS, *FEW):
        for way in WAYS:
            some = [row for row in rows if row["set"] == name and row["way"] == way]
            if not some:
                continue
            figures: Task = {"n": len(some), "per_seed": some}
            for key in ("accuracy", "balanced_accuracy", "cpu_seconds"):
                values = [row[key] for row in some]
                figures[key] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
            found.setdefault(name, {})[way] = figures
    return found


def main() -> None:
    if answered(CHILDREN):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("prepare", "run"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", nargs="+", choices=(*SETS, *CUTS, *FEW), default=[*SETS, *CUTS, *FEW])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="one training each at a time. Default: 0")
    add_out(parser)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.action == "prepare":
        prepare(args.work)
    else:
        run(args)


if __name__ == "__main__":
    main()
