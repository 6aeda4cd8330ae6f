"""Compare the answers of exported pages in Chromium with those of their runs, on 100 real images each.

The sets are Fashion-MNIST, as PNG files of one channel, and the sign-language digits, as JPEG photographs of their
original size, which the page decodes and fits. A network is trained on each set for a short while, and exported as
`cnnlab export --to web` does. --runtime: the archive that `npm pack onnxruntime-web` wrote. --pages: a folder in which
to keep the pages. --tiny: only the package's handwritten digits.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import io
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from _common import add_out, write_result
from cnnlab import train
from cnnlab.data import data_folder
from cnnlab.export.runtime import Exported, open_exported
from cnnlab.export.web_run import export_web
from cnnlab.inference import load_model, validation_images
from cnnlab.io.decode import decode
from cnnlab.recipes import RECIPES
from cnnlab.training.runs import Run

IMAGES = 100
CLASSIFY = """async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), start = performance.now();
  return [await window.cnnlab.classify(new Blob([bytes])), performance.now() - start];
}"""
Figures = dict[str, Any]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def trainings(tiny: bool, folder: Path) -> Iterator[tuple[str, Run, list[bytes]]]:
    """Yield each set's name, a run on it, and some of its validation images as files."""
    base = RECIPES["digits"].changed(model="lenet-bn", epochs=1)
    photographs = data_folder() / "sign-language-digits"
    recipes = {"digits": base}
    if not tiny:
        quick = base.changed(model="resnet18-small", epochs=3)
        recipes = {"fashion-mnist": quick.changed(data="fashion-mnist", limit=3000)}
        if photographs.is_dir():
            recipes["sign-language digits"] = quick.changed(data=f"folder:{photographs}", image_size=32, limit=1200)
    for name, recipe in recipes.items():
        run = train(recipe, runs_dir=folder, name=name.replace(" ", "-"), progress="none").run
        images = validation_images(run)
        assert images is not None
        chosen = np.random.default_rng(0).permutation(len(images))[: 20 if tiny else IMAGES]
        if name.startswith("sign"):
            files = [(photographs / images.ids[k]).read_bytes() for k in chosen]
        else:
            files = [png(images.images[int(k)][0].numpy()) for k in chosen]
        yield name, run, files


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def in_browser(page: Path, files: list[bytes]) -> tuple[list[dict[str, float]], Figures]:
    """Return the page's probability of each class for each file, and its times."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, served(page) as url:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        start = time.perf_counter()
        tab.goto(url)
        tab.wait_for_selector('#status:has-text("Ready")')
        loaded = time.perf_counter() - start
        found = [tab.evaluate(CLASSIFY, base64.b64encode(content).decode()) for content in files]
        version = browser.version
        browser.close()
    answers = [{one["label"]: one["probability"] for one in answer} for answer, _ in found]
    return answers, {"chromium": version, "load_seconds": loaded, "milliseconds": median(ms for _, ms in found)}


def compared(run: Run, files: list[bytes], runtime: Path | None, pages: Path) -> Figures:
    classifier = load_model(run)
    how = classifier.preprocessing.decoding
    wanted = classifier.predict_batch(np.stack([decode("image", how, content) for content in files]))
    web = export_web(run, out=pages / run.path.name, runtime=runtime, force=True)
    single = export_web(run, out=pages / f"{run.path.name}.html", runtime=runtime, single_file=True, force=True)
    network = open_exported(next(web.path.glob("network-*.onnx")), threads=1)
    answers, figures = in_browser(web.path, files)
    p = np.array([[answer[name] for name in run.classes] for answer in answers])
    labels = [next(iter(answer)) for answer in answers]
    return {
        "network": run.recipe.model,
        "images": len(files),
        "same_class": sum(a == b for a, b in zip(labels, wanted.labels, strict=True)),
        "largest_difference": float(np.abs(p - wanted.probabilities.numpy()).max()),
        "folder_bytes": web.size,
        "single_file_bytes": single.size,
        "onnxruntime_milliseconds": by_onnxruntime(network, files),
        **figures,
    }


def by_onnxruntime(network: Exported, files: list[bytes]) -> float:
    """Return the median milliseconds per image of onnxruntime with one thread, including decoding with Pillow."""
    times = []
    for content in files:
        start = time.perf_counter()
        network.probabilities(decode("image", network.decoding, content)[None])
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", type=Path, help="the package onnxruntime-web. Default: downloaded once")
    parser.add_argument("--pages", type=Path, help="keep the pages in this folder")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: one small network")
    add_out(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pages = args.pages or Path(folder) / "pages"
        pages.mkdir(parents=True, exist_ok=True)
        sets: Figures = {}
        for name, run, files in trainings(args.tiny, Path(folder) / "runs"):
            sets[name] = compared(run, files, args.runtime, pages)
            print(name, sets[name], flush=True)
    path = write_result("web-parity", "cpu", {"sets": sets}, args.out)
    print(path)


if __name__ == "__main__":
    main()
