"""Shared by fashion_speed.py and cifar_speed.py: trainings timed with the clocks of cnnlab.machine.timed."""

from __future__ import annotations

import argparse
import time
from typing import Any

from _common import add_out
from cnnlab.machine.timed import timed_process, timed_training
from cnnlab.recipes import RECIPES
from cnnlab.training.series import spread

KEYS = ("val_acc", "final_acc", "train_seconds", "race_seconds", "clock_seconds", "images_per_second")


def run(name: str, seed: int, settings: list[str], split: str, views: str, device: str) -> dict[str, Any]:
    """Train and evaluate in a process of its own."""
    found = timed_process(RECIPES[name].with_settings(settings).changed(seed=seed), split, views, device)
    del found["epochs"]
    return found


def runs(
    name: str, seeds: int, settings: list[str], split: str, views: str, device: str, *,
    together: bool = False, deadline: float = float("inf"), first: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train the recipe called `name` with several seeds. Return each run, and mean and standard deviation.

    together: train in this process, since starting another takes longer than a short run; see `timed_training`.
    deadline: a time of time.perf_counter; after it, only the first seed is started. first: the first seed.
    """
    per_seed: list[dict[str, Any]] = []
    for seed in range(first, first + seeds):
        if per_seed and time.perf_counter() > deadline:
            break
        if together:
            r = timed_training(
                RECIPES[name].with_settings(settings).changed(seed=seed), split, views, device, as_trained=True
            )
            del r["epochs"]
        else:
            r = run(name, seed, settings, split, views, device)
        per_seed.append(r)
        print(
            f"{name} seed {seed}: val acc {r['val_acc']:.4f}; {split} acc, views {views}, {r['final_acc']:.4f}; "
            f"training {r['train_seconds']:.1f} s, whole clock {r['clock_seconds']:.1f} s",
            flush=True,
        )
    recipe = RECIPES[name].with_settings(settings).to_dict()
    if recipe["data"].startswith("store:"):  # do not publish a path of this machine
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
    """Exit with a message if a name is not a recipe's."""
    for name in names:
        if name not in RECIPES:
            parser.error(f"there is no recipe {name}; see `cnnlab list recipes`")
