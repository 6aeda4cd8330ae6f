"""Time one training and one evaluation, in a process of their own, for races and speed benchmarks.

    train_seconds    training steps of all epochs, wall-clock including data loading
    race_seconds     what published speed runs count: whitening, training and the evaluation at the end
    clock_seconds    from images in memory to the test result: building the network, measuring plans where the recipe is
                     long enough for that, whitening, training, validation after each epoch, saving weights, and the
                     one evaluation at the end; drawing the curves is not included
    process_seconds  the whole process from start to exit, including Python's start, imports and reading the files

Compilation, where a plan chooses it, is included in the last two.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cnnlab.io.errors import CnnlabError
from cnnlab.recipe import Recipe


def timed_training(
    recipe: Recipe, split: str, views: str, device: str = "auto", *,
    threads: int | None = None, data_dir: str | Path | None = None, as_trained: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train, evaluate once on `split` with the last epoch's weights, and return times and accuracies.

    views: test-time augmentation of that evaluation, a key of VIEWS. as_trained: evaluate in the precision of the
    training steps, as published speed runs do; else in float32. Raise CnnlabError.
    """
    # Imported before the clock starts, as other packages' imports are: with matplotlib it takes half a second.
    import torch.utils.tensorboard  # noqa: F401

    import cnnlab
    import cnnlab.io.figures

    with tempfile.TemporaryDirectory() as folder:
        result = cnnlab.train(
            recipe, runs_dir=folder, progress="none", device=device, threads=threads, data_dir=data_dir
        )
        session = json.loads((result.run.path / "environment.json").read_text())["sessions"][0]
        final = cnnlab.evaluate_run(
            result.run.path, split=split, weights="last", views=views, device=device, threads=threads,
            data_dir=data_dir, precision=session["dtype"] if as_trained else "float32",
        )  # fmt: skip
        rows = result.run.metrics()
    spans, s = result.timings, result.summary
    return {
        "seed": recipe.seed,
        "val_acc": s["val_acc"],
        "final_split": split,
        "final_acc": final.result.accuracy,
        "views": views,
        "train_seconds": s["train_seconds"],
        "race_seconds": spans["whitening"] + s["train_seconds"] + final.seconds,
        "clock_seconds": spans["setup"] + spans["training"] + final.seconds,
        "images_per_second": s["images_per_second"],
        "images": s["images"]["train"],
        "plan": {key: session[key] for key in ("dtype", "memory_format", "compile", "threads", "plan")},
        "epochs": rows,
    }


def timed_process(recipe: Recipe, split: str, views: str, device: str = "auto", **more: Any) -> dict[str, Any]:
    """Run `timed_training` in a process of its own, and add `process_seconds`. Raise CnnlabError if it fails."""
    task = {"recipe": recipe.to_dict(), "split": split, "views": views, "device": device, **more}
    with tempfile.TemporaryDirectory() as folder:  # not NamedTemporaryFile: on Windows no other process can write it
        answer = Path(folder) / "answer.json"
        start = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - Python itself, on a recipe
            [sys.executable, "-m", __name__, str(answer)],
            input=json.dumps(task), capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            why = re.sub(r"^cnnlab[.\w]*: ", "", why)  # the class of the error
            raise CnnlabError(f"the training of {recipe.name} with seed {recipe.seed} failed: {why}")
        result: dict[str, Any] = json.loads(answer.read_text())
    return {**result, "process_seconds": seconds}


def _main() -> None:
    task = json.load(sys.stdin)
    answer = timed_training(Recipe.from_dict(task.pop("recipe")), **task)
    Path(sys.argv[1]).write_text(json.dumps(answer))


if __name__ == "__main__":
    _main()
