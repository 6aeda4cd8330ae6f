"""Reproduce the chapter's table: python benchmarks/reproduce.py LABEL NAME... [--seeds N] [--epochs N] [--limit N]

Runs `cnnlab reproduce NAME...` and writes build/results/reproduce-LABEL_HARDWARE_DATE.json, from which
benchmarks/tables.py writes docs/reproduction.md. Needs Fashion-MNIST (CNNLAB_DATA, or the network). The classical
baselines start without cached features; the methods named in one call share them.
"""

from __future__ import annotations

import argparse
import os
import tempfile

from _common import add_out, write_result
from cnnlab.chapter.reproduce import Plan, reproduce
from cnnlab.cli.chapter import plan_text, reproduction_text
from cnnlab.data import data_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label", help="as-printed, limited, classical, gpu, ...")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--note", default="", help="what a reader must know, such as other work on the machine")
    add_out(parser)
    args = parser.parse_args()
    plans: list[Plan] = []

    def confirm(plan: Plan) -> bool:
        plans.append(plan)
        print(plan_text(plan), flush=True)
        return True

    data = data_folder()  # before the cache folder changes
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        found = reproduce(
            args.names, seeds=args.seeds, epochs=args.epochs, limit=args.limit, confirm=confirm, runs_dir=folder,
            device=args.device, data_dir=data, progress="lines",
        )  # fmt: skip
        assert found is not None
        print(reproduction_text(found), flush=True)
    figures = {"rows": found.rows, "estimated_seconds": plans[0].seconds, "n": args.seeds, "note": args.note}
    print(write_result(f"reproduce-{args.label}", args.device, figures, args.out))


if __name__ == "__main__":
    main()
