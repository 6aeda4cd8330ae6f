"""Read Kaggle's test.7z of 300,000 images into one array: `prepare` against unpacking it and reading each file.

    python benchmarks/prepare.py [--images 300000] [--repeats 3] [--work .peers/prepare]

First creates a competition whose test.7z contains that many PNG files: the 60,000 of CIFAR-10's two archives
(CNNLAB_DATA/cifar-10), repeated under new names and packed by the 7z program like the real one, as one solid LZMA2
stream. Then it alternates, each side in a process of its own:

    cnnlab    prepare_store: checks, hashes, decodes and writes the store (two labelled images beside it)
    tutorial  `7z x`, then Pillow in a loop over the files into one uint8 array

Seconds are the whole process's, including Python's start. Memory is the peak of the process tree, sampled ten times a
second: `anonymous`, without mapped files, and PSS, which counts mapped files too.

Writes build/results/prepare_HARDWARE_DATE.json. Needs psutil, py7zr and the program 7z, 7zz or 7za.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from _common import add_out, spread, write_result

HERE = Path(__file__).resolve().parent
SIDES = ("cnnlab", "tutorial")


def program() -> str:
    found = next(filter(None, map(shutil.which, ("7z", "7zz", "7za"))), None)
    if not found:
        raise SystemExit("this needs the program 7z (Debian: apt install 7zip)")
    return found


def build(work: Path, images: int) -> Path:
    """Create the competition's folder unless it exists: test.7z with `images` images, and what else `prepare` needs."""
    folder = work / f"competition-{images}"
    if (folder / "ready").exists():
        return folder
    from contextlib import closing

    from cnnlab.data import data_folder
    from cnnlab.data.archives import open_archive

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "test").mkdir(parents=True)
    written = 0
    while written < images:
        for part in ("test", "train"):
            with closing(open_archive(data_folder() / "cifar-10" / f"{part}.7z")) as archive:
                for _, content in archive.read():
                    if written == images:
                        break
                    written += 1
                    (folder / "test" / f"{written}.png").write_bytes(content)
    # One worker, one solid block of LZMA2: the real archive's method.
    pack = [program(), "a", "-mx=5", "-m0=lzma2", "-ms=on", "-mmt=2", "-bso0", "-bsp0", "test.7z", "test"]
    subprocess.run(pack, cwd=folder, check=True)
    (folder / "train").mkdir()
    for name in ("1", "2"):
        (folder / "test" / f"{name}.png").rename(folder / "train" / f"{name}.png")
    shutil.rmtree(folder / "test")
    rows = {"trainLabels.csv": [("1", "cat"), ("2", "dog")]}
    rows["sampleSubmission.csv"] = [(str(i + 1), "cat") for i in range(images)]
    for name, lines in rows.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("id", "label"), *lines])
    (folder / "ready").touch()
    return folder


def child_cnnlab(folder: Path, scratch: Path) -> None:
    from cnnlab.competition.prepare_store import prepare_store

    prepare_store(folder, store=scratch / "store")


def child_tutorial(folder: Path, scratch: Path) -> None:
    subprocess.run([program(), "x", "-bso0", "-bsp0", f"-o{scratch}", str(folder / "test.7z")], check=True)
    files = sorted((scratch / "test").iterdir(), key=lambda file: int(file.stem))
    pixels = np.empty((len(files), 32, 32, 3), np.uint8)
    for i, file in enumerate(files):
        with Image.open(file) as image:
            pixels[i] = np.asarray(image)
    np.save(scratch / "test.npy", pixels.transpose(0, 3, 1, 2))


def memory(pid: int) -> tuple[int, int]:
    """Return the (anonymous, PSS) memory of a process in bytes."""
    anonymous = pss = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Anonymous", "Pss"):
            size = int(value.split()[0]) << 10
            anonymous, pss = (size, pss) if name == "Anonymous" else (anonymous, size)
    return anonymous, pss


def measure(side: str, folder: Path, work: Path, images: int) -> dict[str, Any]:
    """Run one side in a process of its own and check its array."""
    import psutil

    with tempfile.TemporaryDirectory(dir=work) as scratch:
        command = [sys.executable, __file__, "--child", side, "--work", str(folder), "--scratch", scratch]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        root = psutil.Process(process.pid)
        peak = [0, 0]
        while process.poll() is None:
            now = [0, 0]
            with contextlib.suppress(psutil.Error):
                for p in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error, OSError):  # the process may have ended
                        now = [a + b for a, b in zip(now, memory(p.pid), strict=True)]
            peak = [max(a, b) for a, b in zip(peak, now, strict=True)]
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"{side} failed")
        found = np.load(Path(scratch) / ("store/test.npy" if side == "cnnlab" else "test.npy"), mmap_mode="r")
        assert found.shape == (images, 3, 32, 32)
        total = sum(int(found[i : i + 10_000].sum(dtype=np.int64)) * (i + 1) for i in range(0, images, 10_000))
    return {
        "seconds": seconds,
        "images_per_second": images / seconds,
        "peak_anonymous_mib": peak[0] / 2**20,
        "peak_pss_mib": peak[1] / 2**20,
        "checksum": total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=HERE.parent / ".peers" / "prepare")
    parser.add_argument("--note", default="", help="what a reader must know, such as other work on the machine")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    add_out(parser)
    args = parser.parse_args()
    if args.child:
        (child_cnnlab if args.child == "cnnlab" else child_tutorial)(args.work, args.scratch)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    folder = build(args.work, args.images)
    pairs: list[dict[str, Any]] = []
    for number in range(args.repeats):
        pair: dict[str, Any] = {side: measure(side, folder, args.work, args.images) for side in SIDES}
        assert pair["cnnlab"]["checksum"] == pair["tutorial"]["checksum"], "the pixels differ"
        pair["ratio"] = pair["tutorial"]["seconds"] / pair["cnnlab"]["seconds"]
        pairs.append(pair)
        for side in SIDES:
            p = pair[side]
            print(
                f"pair {number + 1}, {side}: {p['seconds']:.1f} s, {p['images_per_second']:,.0f} images/s, "
                f"{p['peak_anonymous_mib']:,.0f} MiB anonymous, {p['peak_pss_mib']:,.0f} MiB PSS",
                flush=True,
            )
    figures = {
        "images": args.images,
        "archive_mib": (folder / "test.7z").stat().st_size / 2**20,
        "n": args.repeats,
        "note": args.note,
        "ratio": spread([p["ratio"] for p in pairs]),
        **{
            side: {
                what: median(p[side][what] for p in pairs)
                for what in ("seconds", "images_per_second", "peak_anonymous_mib", "peak_pss_mib")
            }
            for side in SIDES
        },
        "pairs": pairs,
    }
    print(json.dumps({k: v for k, v in figures.items() if k != "pairs"}, indent=2))
    if not args.dry:
        print(write_result("prepare", "cpu", figures, args.out))


if __name__ == "__main__":
    main()
