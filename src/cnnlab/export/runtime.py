"""Run an exported ONNX file, without PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlab.io.decode import BACKGROUNDS, FITS, Decoding
from cnnlab.io.errors import CnnlabError, expand, needs_extra, reason
from cnnlab.io.schema import NUMBER, Number, check

if TYPE_CHECKING:
    import onnxruntime

FORMAT = 1
DESCRIPTION = "cnnlab"
"""The key of the file's metadata under which it describes itself, as JSON."""
INPUT, OUTPUTS = "pixels", ("probabilities", "label", "none_of_these")
_SIDE = Number(1, 1 << 16, whole=True)
_SCHEMA = {
    "classes": [str],
    "threshold": Number(0, 1),
    "preprocessing": {
        "channels": Number(1, 64, whole=True), "native_size": _SIDE, "fit": FITS, "background": BACKGROUNDS[1:],
        "low": NUMBER, "high": NUMBER, "interpolation": ("bilinear", "bicubic"), "lows": [NUMBER], "highs": [NUMBER],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """An open exported file. description: the JSON object inside, see docs/export.md."""

    path: Path
    description: dict[str, Any]
    session: onnxruntime.InferenceSession

    @property
    def classes(self) -> list[str]:
        """The names of the K classes."""
        return list(self.description["classes"])

    @property
    def threshold(self) -> float:
        """The probability below which an image is none of the classes."""
        return float(self.description["threshold"])

    @property
    def decoding(self) -> Decoding:
        """The arguments with which `io.decode.decode` reads an image file for this network."""
        p = self.description["preprocessing"]
        return Decoding(
            p["channels"], p["native_size"], p["fit"], p["background"], p["low"], p["high"], p["interpolation"],
            tuple(p["lows"]), tuple(p["highs"]),
        )  # fmt: skip

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, K) float32 of images (B, C, H, W) uint8 of any one size."""
        return np.asarray(self.session.run(["probabilities"], {INPUT: pixels})[0])

    def answer(self, pixels: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Return probabilities (B, K), the most probable class of each image, and whether the image is none of them."""
        p, labels, none = self.session.run(list(OUTPUTS), {INPUT: pixels})
        return np.asarray(p), [str(label) for label in labels], np.asarray(none)


def open_exported(path: str | Path, *, threads: int = 0) -> Exported:
    """Open a file that `cnnlab export --to onnx` wrote. threads: number of CPU threads. Default: one per core.

    Raise CnnlabError if the file is damaged or was not written by cnnlab, or if onnxruntime is missing.
    """
    path = expand(path)
    if not path.is_file():
        raise CnnlabError(f"{path} does not exist; cnnlab export RUN writes such a file")
    with needs_extra("export", "onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Threads that spin while they wait would take cores from the threads that decode images: docs/serve.md
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each error code, and no common base
        raise CnnlabError(
            f"{path} is damaged or not an ONNX file: {reason(error, 150)}; write one with cnnlab export RUN"
        ) from error
    return Exported(path, _description(path, session), session)


def _description(path: Path, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)
    if text is None:
        raise CnnlabError(f"{path} was not written by cnnlab; cnnlab export RUN writes such a file")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CnnlabError(f"{path} is damaged: its description is not JSON; export the run again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CnnlabError(f"{path} has another format than this cnnlab reads, {FORMAT}; export the run again")
    check(path, found, _SCHEMA, "export the run again")
    names = ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()][: len(OUTPUTS)])
    if names != ([INPUT], list(OUTPUTS)):
        raise CnnlabError(f"{path} is damaged: it takes and returns other values; export the run again")
    return found
