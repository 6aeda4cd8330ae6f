"""Time to accuracy on CIFAR-10: python benchmarks/cifar_speed.py --store STORE [--seeds 5] [RECIPE...]

STORE: the folder created by `cnnlab kaggle prepare`, which prints its path. Each recipe is trained with several seeds
on the labelled images minus the validation split (a tenth, split_seed 0); cnnlab.machine.timed describes the clocks.
The accuracy is on that split, after the last epoch, because the test labels are secret. Settings were chosen on the
same split, so the accuracy is slightly optimistic.

Writes build/results/cifar-speed_HARDWARE_DATE.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _speed
from _common import write_result


def main() -> None:
    parser = _speed.parser(__doc__, ["speed/cifar-90", "speed/cifar-94"])
    parser.add_argument("--store", type=Path, help="a store from `cnnlab kaggle prepare`; --tiny uses digits instead")
    args = parser.parse_args()
    _speed.check(parser, args.recipes)
    if args.store is None and not args.tiny:
        parser.error("--store FOLDER is missing; `cnnlab kaggle prepare` creates one and prints its path")
    settings = [f"data=store:{args.store.absolute()}" if args.store else "data=digits", *args.set]
    if args.tiny:
        args.recipes, args.seeds = ["speed/cifar-90"], 1
        settings += ["limit=500", "epochs=1", "image_size=32"]
    figures: dict[str, Any] = {
        name: _speed.runs(
            name, args.seeds, settings, "validation", args.views or "shift", args.device, together=args.tiny
        )
        for name in args.recipes
    }
    result = {"n": args.seeds, "split_seed": 0, "val_fraction": 0.1, "recipes": figures}
    print(write_result("cifar-speed" + (args.label and f"-{args.label}"), args.device, result, args.out))


if __name__ == "__main__":
    main()
