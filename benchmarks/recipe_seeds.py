"""Train each named recipe with several seeds: python benchmarks/recipe_seeds.py [--seeds 5] [RECIPE...]

Writes build/results/recipe-seeds_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA, or the network).
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import cnnlab
from _common import add_out, write_result

# The manual's figures; for LeNet, those of its source. The manual gives neither seeds nor spread.
PRINTED = {
    "manual/lenet": {"loss": 0.469, "train_acc": 0.823, "test_acc": 0.779},
    "manual/lenet-bn": {"loss": 0.263, "train_acc": 0.902, "test_acc": 0.862},
}
SPLIT = {
    "test": "test, evaluated after each epoch as the book does; figures of the last epoch",
    "validation": "validation, held out of the training images; figures of the last epoch",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["manual/lenet", "manual/lenet-bn", "digits", "fashion-mnist"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    add_out(parser)
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    device = args.device
    with tempfile.TemporaryDirectory() as folder:
        for name in args.recipes:
            result = cnnlab.train_seeds(name, args.seeds, runs_dir=folder, device=args.device, progress="lines")
            print(result, flush=True)
            device = result.results[0].summary["device"]
            key = "test_acc" if result.summary["eval_split"] == "test" else "val_acc"
            figures[name] = {
                "split": SPLIT[result.summary["eval_split"]],
                "printed_by_the_manual": PRINTED.get(name),
                **result.summary,
                f"{key}_by_epoch": {
                    str(r.summary["seed"]): [row[key] for row in r.run.metrics()] for r in result.results
                },
                # without the figures of each class
                "per_seed": [{k: v for k, v in r.summary.items() if k != "figures"} for r in result.results],
            }
    print(write_result("recipe-seeds", device, {"n": args.seeds, "recipes": figures}, args.out))


if __name__ == "__main__":
    main()
