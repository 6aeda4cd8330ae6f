"""What fashion_speed.py and cifar_speed.py share: one training under both clocks, in a process of its own.

    train_seconds   the epochs' training, wall-clock with data, nothing else
    clock_seconds   from images in memory to a finished run and its answer: building the network, the trial of the plan
                    where the recipe is long enough for one, whitening, training, validation after each epoch, saving
                    weights and curves, and the one evaluation at the end (as_trained: curves are not drawn)
    race_seconds    what published speed runs count: whitening, training and the evaluation at the end

Outside: starting Python with all that a run imports, reading the files. Compilation, where a plan chooses it, is
inside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import add_out
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training.series import spread

KEYS = ("val_acc", "final_acc", "train_seconds", "race_seconds", "clock_seconds", "images_per_second")


def child(recipe: Recipe, split: str, views: str, device: str, as_trained: bool = False) -> dict[str, Any]:
    """Train, then evaluate once on `split` with the last epoch's weights.

    as_trained: in the precision of the training's steps, as published speed runs do; else in float32.
    """
    # With matplotlib half a second, which d2l's import has before its clock, too.
    import torch.utils.tensorboard  # noqa: F401

    import cnnlab
    import cnnlab.io.figures

    with tempfile.TemporaryDirectory() as folder:
        result = cnnlab.train(recipe, runs_dir=folder, progress="none", device=device)
        session = json.loads((result.run.path / "environment.json").read_text())["sessions"][0]
        precision = session["dtype"] if as_trained else "float32"
        final = cnnlab.evaluate_run(
            result.run.path, split=split, weights="last", views=views, device=device, precision=precision
        )
    spans = result.timings
    s = result.summary
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
    }


def run(name: str, seed: int, settings: list[str], split: str, views: str, device: str) -> dict[str, Any]:
    """Run `child` in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [sys.executable, __file__, name, str(seed), split, views, device, answer.name, *settings]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(Path(answer.name).read_text())
        return result


def runs(
    name: str, seeds: int, settings: list[str], split: str, views: str, device: str, *,
    together: bool = False, deadline: float = float("inf"), first: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train the recipe called `name` with several seeds. Return each run, and mean and standard deviation.

    together: in this process, since starting one takes longer than a short run; see `as_trained` of `child`. deadline:
    of time.perf_counter, after which no seed but the first is started. first: the first seed.
    """
    per_seed: list[dict[str, Any]] = []
    for seed in range(first, first + seeds):
        if per_seed and time.perf_counter() > deadline:
            break
        if together:
            r = child(RECIPES[name].with_settings(settings).changed(seed=seed), split, views, device, as_trained=True)
        else:
            r = run(name, seed, settings, split, views, device)
        per_seed.append(r)
        print(
            f"{name} seed {seed}: val acc {r['val_acc']:.4f}; {split} acc, views {views}, {r['final_acc']:.4f}; "
            f"training {r['train_seconds']:.1f} s, whole clock {r['clock_seconds']:.1f} s",
            flush=True,
        )
    recipe = RECIPES[name].with_settings(settings).to_dict()
    if recipe["data"].startswith("store:"):  # a path of this machine
        recipe["name"] = recipe["name"].replace(recipe["data"], "store:PATH")
        recipe["data"] = "store:PATH"
    return {
        "recipe": recipe,
        **{key: spread([r[key] for r in per_seed]) for key in KEYS},
        "per_seed": per_seed,
    }


def parser(doc: str | None, recipes: list[str]) -> argparse.ArgumentParser:
    """Return a parser with the options of both scripts."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=recipes)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", help="test-time augmentation of the final evaluation: none, flip or shift")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    add_out(parser)
    parser.add_argument("--label", default="", help="added to the result's name")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: a few hundred images")
    return parser


def check(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Exit with a message if a name is not that of a recipe."""
    for name in names:
        if name not in RECIPES:
            parser.error(f"there is no recipe {name}; see `cnnlab list recipes`")


if __name__ == "__main__":
    name, seed, split, views, device, answer = sys.argv[1:7]
    recipe = RECIPES[name].with_settings(sys.argv[7:]).changed(seed=int(seed))
    Path(answer).write_text(json.dumps(child(recipe, split, views, device)))
