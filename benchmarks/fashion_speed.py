"""The `fast/*` recipes on Fashion-MNIST: python benchmarks/fashion_speed.py [--seeds 5] [--beside-d2l 5] [RECIPE...]

Each recipe is trained with several seeds; cnnlab.machine.timed describes the clocks. The validation split is the
recipe's (a tenth of the training images, split_seed 0), on which settings were chosen. The test set is evaluated once
per seed, after the last epoch, with the weights of that epoch. `cnnlab race` measures the `speed/*` recipes.

multiply_adds counts the forward passes of the training (the whole is about three times that); that of the manual's
recipe is given for comparison. --beside-d2l N: also run N alternating pairs of d2l's own train_ch6 (BN-LeNet, 10
epochs) and speed/fashion-90, each in a process of its own; see vs_d2l.py.

Writes build/results/fashion-speed_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA, or the network).
"""

from __future__ import annotations

from typing import Any

import _speed
from _common import spread, write_result
from cnnlab.chapter.experiments import EXPERIMENTS
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training.evaluate import VIEWS

# The test accuracies that the manual prints; for networks that it does not train, those of its source.
PRINTED = {name: e.test_acc for name, e in EXPERIMENTS.items() if name != "lenet-bn-scratch"}
FAST = [f"fast/{name}" for name in PRINTED]


def multiply_adds(recipe: Recipe, images: int) -> float:
    """Return the multiply-adds of all forward passes of the training."""
    from cnnlab.models import build_model
    from cnnlab.training.plan import operations

    size = recipe.image_size or 28
    return operations(lambda: build_model(recipe.model, image_size=size), (1, size, size)) / 6 * images * recipe.epochs


def beside_d2l(pairs: int, settings: list[str], device: str) -> dict[str, Any]:
    """Train d2l's BN-LeNet for 10 epochs and speed/fashion-90, alternating."""
    import vs_d2l

    vs_d2l.ensure_installed()
    found = []
    for number in range(pairs):
        theirs = vs_d2l.measure("d2l", "lenet-bn", 10)
        ours = _speed.run("speed/fashion-90", number, settings, "test", "none", device)
        found.append({"d2l": theirs, "cnnlab": ours, "ratio": theirs["seconds"] / ours["clock_seconds"]})
        print(
            f"pair {number + 1}: d2l's BN-LeNet, 10 epochs {theirs['seconds']:.1f} s; speed/fashion-90 "
            f"{ours['clock_seconds']:.1f} s, test acc {ours['final_acc']:.4f}: 1/{found[-1]['ratio']:.1f}",
            flush=True,
        )
    return {"ratio": spread([p["ratio"] for p in found]), "pairs": found}


def main() -> None:
    parser = _speed.parser(__doc__, FAST)
    parser.add_argument("--beside-d2l", type=int, default=0, metavar="PAIRS")
    args = parser.parse_args()
    _speed.check(parser, args.recipes)
    settings = [*args.set, *(["limit=500"] if args.tiny else [])]
    if args.tiny:
        args.recipes, args.seeds = ["fast/lenet-bn"], 1
    split = "validation" if args.tiny else "test"  # the test set is too large for a smoke test
    figures: dict[str, Any] = {}
    for name in args.recipes:
        views = args.views or ("flip" if RECIPES[name].flip else "none")
        found = _speed.runs(name, args.seeds, settings, split, views, args.device, together=args.tiny)
        images = found["per_seed"][0]["images"]
        found["multiply_adds"] = multiply_adds(RECIPES[name].with_settings(settings), images)
        network = name.removeprefix("fast/")
        if network in PRINTED:
            found["printed_test_acc"] = PRINTED[network]
            found["manual_multiply_adds"] = multiply_adds(RECIPES[f"manual/{network}"], 60_000)
            share = found["manual_multiply_adds"] / found["multiply_adds"]
            print(f"{name}: 1/{share:.0f} of the manual's multiply-adds", flush=True)
        found["looks"] = VIEWS[views]
        figures[name] = found
    result = {"n": args.seeds, "split_seed": 0, "val_fraction": 0.1, "recipes": figures}
    if args.beside_d2l:
        result["beside_d2l"] = beside_d2l(args.beside_d2l, settings, args.device)
    print(write_result("fashion-speed" + (args.label and f"-{args.label}"), args.device, result, args.out))


if __name__ == "__main__":
    main()
