"""The description inside an exported file: one JSON object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnnlab.device.hardware import package_version
from cnnlab.export.runtime import FORMAT
from cnnlab.inference import Classifier
from cnnlab.inspect.report.folders import paths_of, shortened, without_folders
from cnnlab.training.runs import Run


def describe(run: Run, weights: Path, classifier: Classifier) -> dict[str, Any]:
    """Return the description of a run's exported network. weights: the exported weights file.

    Of paths on this machine only the last part is left: the file is meant to be shared.
    """
    p = classifier.preprocessing
    versions = {name: package_version(name) for name in ("torch", "pillow", "numpy")}
    about = {
        "format": FORMAT,
        "classes": classifier.classes,
        "preprocessing": p.to_dict(),
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "run": run.path.absolute().name,
        "weights": weights.name,
        "network": run.info["model"]["name"],
        "parameters": run.info["model"]["parameters"],
        "recipe": run.recipe.to_dict(),
        "versions": {"cnnlab": package_version("cnnlab"), **versions},
        "published_weights": run.info["model"].get("weights"),
        "decoding": decoding_in_words(p.channels, p.background, p.low, p.high),
    }
    shown: dict[str, Any] = without_folders(about, shortened(paths_of(run)))
    return shown


def utf8(name: str) -> str:
    """Return a class's name as valid UTF-8. Other bytes, which a folder's name may contain, become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def decoding_in_words(channels: int, background: str, low: float, high: float) -> str:
    """Return how a file becomes the input `pixels`, in words."""
    colours = {
        1: "1 channel of grey, (19595 R + 38470 G + 7471 B + 32768) >> 16 of colours (ITU-R 601-2)",
        3: "3 channels R, G, B; grey images with three equal channels",
    }.get(channels, f"{channels} channels as stored")
    deep = f"values {low:g} to {high:g}" if high else "the range of the type"
    return (
        f"pixels is uint8 (batch, {channels}, height, width), 0 to 255, images of any one size: the first frame; "
        f"turned upright by its EXIF orientation; {colours}; transparent parts over {background}; 16-bit, 32-bit and "
        f"floating-point values: {deep} scaled to 0..255, rounded. The graph does all that follows"
    )
