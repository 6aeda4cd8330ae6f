"""Compare sets that do not fit in memory with litdata and WebDataset: packing, memory, images/s and exact resume.

    python benchmarks/packed.py decoders          # compares decoders, in threads and processes
    python benchmarks/packed.py set --work DIR    # makes a set of 96 pixels; DIR takes three times its size

The peers are imported from .peers/loaders: pip install --target .peers/loaders litdata webdataset torchcodec spdl-io.
All sides read the same pixels: cnnlab's pack, litdata's chunks of tensors, and WebDataset's tar shards of .bmp files.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _common import PEERS, Task, add_out, call, spread, write_result

SIDE, CLASSES, BATCH, SHARD = 96, 10, 32, 9000  # SHARD: images per tar
RESIDENT = 10_000  # images in memory: loading all five gigabytes would take minutes
FIGURES = ("images_per_second", "cpu_ms_per_image", "peak_pss_mib", "peak_rss_mib")
HEADER = 54  # bytes before the pixels of a .bmp
SIDES = ("packed", "resident", "litdata", "webdataset")
sys.path.append(str(PEERS / "loaders"))


# Decoders


def photos(count: int) -> list[bytes]:
    """Return JPEGs of 500 x 375 pixels, about 100 kB each as in ImageNet: smooth shapes with noise."""
    import numpy as np
    from PIL import Image, ImageFilter

    draw = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375))
        noise = Image.fromarray(draw.integers(0, 256, (375, 500, 3), np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
        file = io.BytesIO()
        Image.blend(coarse, noise, 0.25).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def with_pillow(content: bytes) -> Any:
    from cnnlab.io.decode import Decoding, decode

    return decode("image", Decoding(3, 224, "crop"), content)


def with_torchcodec(content: bytes) -> Any:
    import torch
    import torch.nn.functional as F
    from torchcodec.decoders import decode_jpeg

    image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    image = image[..., :, (image.shape[-1] - image.shape[-2]) // 2 :][..., : image.shape[-2]]
    return F.interpolate(image[None], size=(224, 224), mode="bilinear", antialias=True)[0]


def with_spdl(content: bytes) -> Any:
    import spdl.io

    return spdl.io.to_numpy(spdl.io.load_image(content, filter_desc="crop=375:375,scale=224:224,format=rgb24"))


def decoders(args: argparse.Namespace) -> None:
    import torch

    from cnnlab.device.hardware import available_cores

    torch.set_num_threads(1)
    cores = available_cores()
    files = photos(args.images)
    missing: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    kinds: dict[str, Callable[[bytes], Any]] = {
        "pillow": with_pillow, "torchcodec": with_torchcodec, "spdl": with_spdl,
    }  # fmt: skip
    for name, work in list(kinds.items()):
        try:
            work(files[0])
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]
            del kinds[name]
    with ThreadPoolExecutor(cores) as threads, ProcessPoolExecutor(cores) as processes:
        list(processes.map(with_pillow, files[:cores]))  # warm up: import everything
        for _ in range(args.rounds):
            for name, work in kinds.items():
                ways: dict[str, Any] = {"one thread": map, "threads": threads.map}
                if name == "pillow":
                    ways["processes"] = processes.map
                for way, mapped in ways.items():
                    start, busy = time.perf_counter(), time.process_time()
                    for _ in mapped(work, files):
                        pass
                    if way == "one thread":
                        cpu.setdefault(name, []).append(1000 * (time.process_time() - busy) / len(files))
                    rates.setdefault(f"{name}, {way}", []).append(len(files) / (time.perf_counter() - start))
    figures = {name: spread(values) for name, values in rates.items()}
    for name, values in figures.items():
        print(f"{name}: {values['median']:.0f} images/s ({values['min']:.0f} to {values['max']:.0f})")
    times = {name: spread(values) for name, values in cpu.items()}
    for name, values in times.items():
        print(f"{name}: {values['median']:.2f} ms of CPU time an image")
    size = sum(map(len, files)) / len(files)
    about = {"images": len(files), "bytes_each": size, "rounds": args.rounds, "images_per_second": figures,
             "cpu_ms_per_image": times}  # fmt: skip
    print(f"wrote {write_result('packed-decoders', 'cpu', {**about, 'missing': missing}, args.out)}")


# A set larger than what should be in memory


def make_tars(folder: Path, count: int) -> None:
    """Write tar shards of .bmp images: a smooth pattern for each class, with noise, the same on every machine."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    head = bytearray(b"BM" + bytes(HEADER - 2))
    for at, value in ((2, HEADER + SIDE * SIDE * 3), (10, HEADER), (14, 40), (18, SIDE), (22, SIDE)):
        head[at : at + 4] = value.to_bytes(4, "little")
    head[26], head[28] = 1, 24
    shapes = np.random.default_rng(0).integers(40, 216, (CLASSES, 6, 6, 3)).repeat(16, 1).repeat(16, 2)
    for shard in range(-(-count // SHARD)):
        if (path := folder / f"train-{shard:03}.tar").exists():
            continue
        draw = np.random.default_rng(shard)
        with tarfile.open(folder / "unfinished", "w:") as tar:
            for i in range(shard * SHARD, min(count, (shard + 1) * SHARD)):
                noise = draw.integers(-40, 41, (SIDE, SIDE, 3), np.int16)
                pixels = (shapes[i % CLASSES] + noise).astype(np.uint8)
                for ending, content in (("bmp", bytes(head) + pixels.tobytes()), ("cls", str(i % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{i:07}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (folder / "unfinished").rename(path)


def sample(row: int, pack: str) -> dict[str, Any]:
    """Return one image for litdata.optimize. It comes from the packed set, since the tar shards have no index."""
    import numpy as np

    from cnnlab.data import SourceOptions, load_images

    if pack not in _PACKS:
        _PACKS[pack] = load_images(f"pack:{pack}", "train", SourceOptions(data_dir=Path(pack)))
    images = _PACKS[pack]
    return {"image": images.images[row].numpy(), "label": np.int64(images.labels[row])}


_PACKS: dict[str, Any] = {}


def bmp_pixels(content: bytes) -> Any:
    import numpy as np

    stored = np.frombuffer(content, np.uint8, offset=HEADER).reshape(SIDE, SIDE, 3)
    return np.ascontiguousarray(stored[::-1, :, ::-1].transpose(2, 0, 1))


def batches(side: str, work: Path, state: dict[str, Any] | None = None) -> tuple[Iterator[Any], Callable[[], Any]]:
    """Return batches (x uint8 or float32, y) of an epoch, and a function that returns the state to resume from."""
    import torch

    if side in ("packed", "resident"):
        from cnnlab.data import SourceOptions, load_images
        from cnnlab.data.loader import Loader, Preprocessing

        images = load_images(f"pack:{work / 'pack'}", "train", SourceOptions(data_dir=work))
        assert images is not None
        if side == "resident":
            from dataclasses import replace

            images = images.take(torch.arange(RESIDENT))
            images = replace(images, images=images.images[:])
        some = images.take(torch.arange(1000)).images
        preprocessing = Preprocessing.of(some, image_size=SIDE, fit="pad", normalize=True)
        own = Loader(images, preprocessing, BATCH, torch.device("cpu")).shuffled(0, 0, 0, state)
        return own, own.state
    if side == "litdata":
        from litdata import StreamingDataLoader, StreamingDataset

        data = StreamingDataset(str(work / "litdata"), shuffle=True, seed=0)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=1)
        if state is not None:
            loader.load_state_dict(state)
        return ((b["image"], b["label"]) for b in loader), loader.state_dict
    import webdataset

    shards = sorted(map(str, (work / "tars").glob("train-*.tar")))
    data = webdataset.WebDataset(shards, shardshuffle=100, seed=0).shuffle(1000, initial=1000, seed=0)
    data = data.map(lambda s: (bmp_pixels(s["bmp"]), int(s["cls"]))).batched(BATCH, partial=True)
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=1)
    return ((torch.as_tensor(x), torch.as_tensor(y)) for x, y in loader), lambda: None


def rates(images: int, start: float, busy: float) -> Task:
    """Return the images per second, and the CPU time per image of this process without its workers."""
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"images_per_second": images / seconds, "cpu_ms_per_image": 1000 * cpu / images}


def read_all(task: Task) -> Task:
    """Read `images` images and do nothing with them."""
    found, _ = batches(task["side"], Path(task["work"]))
    next(found)
    count, start, busy = 0, time.perf_counter(), time.process_time()
    for x, _ in found:
        count += len(x)
        if count >= task["images"]:
            break
    return {**rates(count, start, busy), "images": count}


def train_some(task: Task) -> Task:
    """Train ResNet-18 for `steps` steps; return the images per second after the first two."""
    import torch

    from cnnlab import build_model, train_step
    from cnnlab.device.determinism import reproducible
    from cnnlab.device.hardware import available_cores
    from cnnlab.recipes import RECIPES
    from cnnlab.training.optim import make_optimizer

    with reproducible(0, available_cores()):
        model = build_model("resnet18", num_classes=CLASSES, in_channels=3, image_size=SIDE)
        model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, RECIPES["digits"].changed(learning_rate=0.05))
        found, _ = batches(task["side"], Path(task["work"]))
        start = busy = 0.0
        for step, (x, y) in enumerate(itertools.islice(found, task["steps"])):
            if step == 2:
                start, busy = time.perf_counter(), time.process_time()
            x = x if x.is_floating_point() else x.float() / 255
            train_step(model, optimizer, x.to(memory_format=torch.channels_last), y)
        return rates((task["steps"] - 2) * BATCH, start, busy)


def resumed(task: Task) -> Task:
    """Return whether a new loader that resumes from the state after `steps` batches yields the same further batches."""
    side, work, steps = task["side"], Path(task["work"]), task["steps"]

    def taken(found: Iterator[Any], count: int) -> list[tuple[Any, Any]]:
        return [(x.clone(), y.clone()) for x, y in itertools.islice(found, count)]

    whole = taken(batches(side, work)[0], 2 * steps)
    found, state = batches(side, work)
    taken(found, steps)
    saved = state()
    if saved is None:
        return {"exact": False, "why": "it has no state to resume from"}
    rest = taken(batches(side, work, json.loads(json.dumps(saved)))[0], steps)
    pairs = zip(whole[steps:], rest, strict=False)  # the resumed loader may end early
    same = [bool((x == x2).all()) and y.tolist() == y2.tolist() for (x, y), (x2, y2) in pairs]
    return {"exact": len(rest) == steps and all(same), "batches": len(same), "equal": sum(same)}


def write_pack(task: Task) -> Task:
    from cnnlab.data import SourceOptions
    from cnnlab.data.pack_writer import pack

    work = Path(task["work"])
    start = time.perf_counter()
    found = pack(f"wds:{work / 'tars'}", work / "pack", SourceOptions(data_dir=work))
    return {"seconds": time.perf_counter() - start, "bytes": found.bytes, "images": found.counts["train"]}


def write_litdata(task: Task) -> Task:
    from functools import partial

    from litdata import optimize

    work = Path(task["work"])
    start = time.perf_counter()
    optimize(
        fn=partial(sample, pack=str(work / "pack")), inputs=list(range(task["images"])),
        output_dir=str(work / "litdata"), chunk_bytes="64MB", num_workers=1,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - start}


TASKS = {"pack": write_pack, "write": write_litdata, "read": read_all, "train": train_some, "resume": resumed}


def whole_set(args: argparse.Namespace) -> None:
    work: Path = args.work.absolute()
    count = round(args.gigabytes * 1e9 / (SIDE * SIDE * 3))
    if not (work / "pack").exists():
        make_tars(work / "tars", count)
    figures: Task = {
        "images": count,
        "bytes": count * SIDE * SIDE * 3,
        "batch_size": BATCH,
        "rounds": args.rounds,
        "resident_images": RESIDENT,
    }

    def run(kind: str, side: str, **more: Any) -> Task:
        answer = call({"task": kind, "side": side, "work": str(work), **more})
        print(kind, side, {k: round(v, 2) if isinstance(v, float) else v for k, v in answer.items()}, flush=True)
        return answer

    if not (work / "pack").exists():
        figures["packing"] = run("pack", "packed")
    if "litdata" in args.sides and not (work / "litdata" / "index.json").exists():
        figures["writing_litdata"] = run("write", "litdata", images=count)
    for kind, more in (("read", {"images": args.read}), ("train", {"steps": args.steps})):
        if kind not in args.kinds:
            continue
        found: dict[str, list[Task]] = {side: [] for side in args.sides}
        for _ in range(args.rounds):  # interleaved, since the machine's load changes
            for side in args.sides:
                found[side].append(run(kind, side, **more))
        figures[kind] = {
            side: {name: spread([a[name] for a in answers]) for name in FIGURES}
            for side, answers in found.items()
        }  # fmt: skip
    if "epoch" in args.kinds:
        figures["epoch"] = run("read", "packed", images=count)
    if "resume" in args.kinds:
        figures["resume"] = {side: run("resume", side, steps=20) for side in args.sides if side != "resident"}
    print(f"wrote {write_result('packed-set', 'cpu', figures, args.out)}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        task = json.loads(sys.argv[2])
        Path(sys.argv[3]).write_text(json.dumps(TASKS[task["task"]](task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("decoders", "set"))
    parser.add_argument("--images", type=int, default=64, help="decoders: photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="set: a folder for the set, which stays there")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--read", type=int, default=20_000, help="set: images that are read only")
    parser.add_argument("--steps", type=int, default=12, help="set: steps of ResNet-18")
    kinds = ("read", "train", "epoch", "resume")
    parser.add_argument("--kinds", nargs="+", default=list(kinds), choices=kinds, help="set: what is measured")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    add_out(parser)
    args = parser.parse_args()
    if args.what == "decoders":
        decoders(args)
    elif args.work is None:
        parser.error("set needs --work DIR")
    else:
        whole_set(args)


if __name__ == "__main__":
    main()
