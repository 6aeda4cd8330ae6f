"""Export every network to ONNX and compare it on the whole validation set; measure sizes, seconds and images/s.

    python benchmarks/export.py [--minutes 40] [--networks lenet resnet18 ...] [--out DIR]

Every network of MODELS and two of timm's are trained for a few steps on the handwritten digits, at the smallest of 32,
64, 96 and 224 pixels that they accept, and exported. They have learned little, but their answers differ from image to
image, so a lost bias or a changed layout or epsilon shows. The networks of FORMS are trained for some epochs
and also exported to the other formats, where a loss of accuracy is meaningful. Images/s: one thread, batches of one
size, PyTorch and onnxruntime in turn, the best of each. The result is written after every network and names those not
reached within --minutes. Another call with the same --out measures them, possibly on another machine: each row names
its vector instructions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import add_out, write_result

SIZES = (32, 64, 96, 224)
TIMM = ("timm:mobilenetv3_small_050", "timm:convnext_atto")
FORMS = ("lenet-bn", "resnet18-small", "efficientnet-lite0")
OTHER = (
    {"fp16": True}, {"int8": True}, {"to": "torch"}, {"to": "torch", "fp16": True}, {"to": "safetensors"},
)  # fmt: skip
ROUNDS, BATCH, EPOCHS = 3, 16, 3


def trained(network: str, folder: Path, epochs: int = 0) -> Any:
    """Return a run of the network at the smallest size that it accepts."""
    from cnnlab import CnnlabError, train

    # A small learning rate: probabilities of 0 and 1 would hide differences.
    settings: dict[str, Any] = {"learning_rate": 0.02, "seed": 0, "epochs": epochs or 1}
    settings |= {} if epochs else {"limit": 512, "batch_size": 16}
    for size in SIZES:
        try:
            return train(
                "digits", model=network, image_size=size, runs_dir=folder, name=f"try-{size}", progress="none",
                **settings,
            ).run  # fmt: skip
        except CnnlabError as error:
            last = error
    raise last


def speeds(sides: dict[str, Callable[[], object]], images: int) -> dict[str, float]:
    """Return the images/s of each side: the best of several rounds in which the sides take turns."""
    best = dict.fromkeys(sides, float("inf"))
    for side in sides.values():
        side()
    for _ in range(ROUNDS):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: images / seconds for name, seconds in best.items()}


def measure(run: Any, folder: Path, **options: Any) -> dict[str, Any]:
    """Export a run and return its report, with images/s."""
    import torch

    from cnnlab import export_run, load_model
    from cnnlab.export.export import FORMS as ENDINGS
    from cnnlab.export.runtime import open_exported
    from cnnlab.inference import validation_images

    out = folder / f"export{ENDINGS[options.get('to', 'onnx')] or '-folder'}"
    found = export_run(run, out=out, threads=1, force=True, **options)
    row = {key: found.report[key] for key in ("bytes", "seconds", "parameters", "network", "form", "precision")}
    row |= {"image_size": run.info["model"]["image_size"], "parity": found.report["parity"]}
    row["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if options.get("to", "onnx") == "onnx":
        opened, classifier = open_exported(out, threads=1), load_model(run)
        pixels = validation_images(run).images[:BATCH].numpy()
        row["images_per_second"] = speeds(
            {
                "torch": lambda: classifier.predict_batch(pixels, threads=1).probabilities,
                "onnxruntime": lambda: opened.probabilities(pixels),
            },
            len(pixels),
        )
    return row


def fit_speed() -> dict[str, Any]:
    """Return the CPU time in milliseconds of the fit alone, and the peak memory of the process.

    The images are photographs, and images that already have the network's size.
    """
    import resource

    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    from cnnlab.export.build import Nodes
    from cnnlab.export.fit import fit_nodes
    from cnnlab.io.decode import Decoding

    rows = []
    for size, height, width in ((32, 32, 32), (224, 224, 224), (32, 3000, 4000), (224, 3000, 4000), (224, 4000, 3000)):
        g = Nodes("fit/")
        fit_nodes(g, "pixels", Decoding(3, size, interpolation="bicubic"), "fitted")
        values = [
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 3, "H", "W"]),
            helper.make_tensor_value_info("fitted", TensorProto.UINT8, ["B", 3, size, size]),
        ]
        graph = helper.make_graph(g.nodes, "fit", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        pixels = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), np.uint8)
        times = []
        for _ in range(5 if height > size else 200):
            start = time.process_time()
            session.run(None, {"pixels": pixels})
            times.append(1000 * (time.process_time() - start))
        rows.append({"size": size, "height": height, "width": width, "cpu_milliseconds": min(times)})
        rows[-1]["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"threads": 1, "interpolation": "bicubic", "fit": "pad", "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--minutes", type=float, default=60.0, help="no network is begun after that")
    parser.add_argument("--networks", nargs="*", help="default: all")
    parser.add_argument("--tiny", action="store_true", help="one network, for the tests")
    parser.add_argument("--fit", action="store_true", help="measure the fit of photographs instead")
    args = parser.parse_args()
    if args.fit:
        print(write_result("export-fit", "cpu", fit_speed(), args.out))
        return
    from cnnlab import MODELS, CnnlabError

    form = {"to": "safetensors"} if args.tiny else {}  # needs no ONNX conversion, which takes seconds
    names = ["lenet"] if args.tiny else args.networks or [*MODELS, *TIMM]
    tasks = [(name, 0) for name in names] + [(name, EPOCHS) for name in FORMS if name in names and not args.tiny]
    end = time.perf_counter() + 60 * args.minutes
    earlier = max(args.out.glob("export_*.json"), default=None)
    begun = {} if earlier is None else json.loads(earlier.read_text())
    rows, others = begun.get("networks", []), begun.get("forms", [])
    for row in (*rows, *others):
        row.setdefault("cpu_capability", begun["environment"]["cpu_capability"])
    have = {(row["network"], False) for row in rows} | {(row["network"], True) for row in others}
    tasks = [(name, epochs) for name, epochs in tasks if (name, bool(epochs)) not in have]
    figures = {"data": "digits", "batch": BATCH, "threads": 1, "networks": rows, "forms": others}
    written = None
    for done, (name, epochs) in enumerate(tasks):
        if time.perf_counter() > end:
            break
        with tempfile.TemporaryDirectory() as work:
            try:
                run = trained(name, Path(work), epochs)
                if epochs:
                    others += [measure(run, Path(work), **one) for one in ({}, *OTHER)]
                else:
                    rows.append(measure(run, Path(work), **form))
                    print(name, rows[-1]["parity"], f"{rows[-1]['seconds']:.0f} s", flush=True)
            except CnnlabError as error:  # a refused network is a result, too
                rows.append({"network": name, "refused": str(error)})
                print(name, error, flush=True)
        left_out = [f"{name} ({epochs} epochs)" if epochs else name for name, epochs in tasks[done + 1 :]]
        written = write_result("export", "cpu", {**figures, "left_out": left_out}, args.out)
    print(written)


if __name__ == "__main__":
    main()
