"""Reproduce the chapter's table: python benchmarks/reproduce.py LABEL NAME... [--seeds N] [--epochs N] [--limit N]

Runs `cnnlab reproduce NAME...` and writes build/results/reproduce-LABEL_HARDWARE_DATE.json, from which
benchmarks/tables.py writes docs/reproduction.md. Needs Fashion-MNIST (CNNLAB_DATA, or the network). The classical
baselines start without cached features; the methods named in one call share them. With --runs-dir, the runs are kept,
and the same command continues after a stop.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from _common import add_out, write_result
from cnnlab.chapter.reproduce import Plan, Reproduction, reproduce, resume_reproduction
from cnnlab.cli.chapter import plan_text, reproduction_text
from cnnlab.data import data_folder
from cnnlab.io.files import read_json
from cnnlab.training.runs import open_run


def accuracies(series: Path) -> list[list[float]]:
    """Return the test accuracy of each epoch for each seed; [] for a classical method."""
    return [[row["test_acc"] for row in open_run(folder).metrics()] for folder in sorted(series.glob("seed-*"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label", help="as-printed, limited, classical, gpu, ...")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--note", default="", help="what a reader must know, such as other work on the machine")
    parser.add_argument("--runs-dir", type=Path, help="folder that keeps the runs. Default: a temporary one")
    add_out(parser)
    args = parser.parse_args()

    def confirm(plan: Plan) -> bool:
        print(plan_text(plan), flush=True)
        return True

    data = data_folder()  # before the cache folder changes
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        runs_dir, name = args.runs_dir or Path(folder), "-".join((args.label, *args.names))
        common = {"runs_dir": runs_dir, "device": args.device, "data_dir": data, "progress": "lines"}
        started = runs_dir / name / "reproduction.json"
        if started.is_file():
            found: Reproduction | None = resume_reproduction(name, **common)
        else:
            found = reproduce(
                args.names, seeds=args.seeds, epochs=args.epochs, limit=args.limit, name=name, confirm=confirm, **common
            )
        assert found is not None
        plan = read_json(started)
        by_epoch = {row["name"]: accuracies(found.path / row["name"]) for row in found.rows}
    print(reproduction_text(found), flush=True)
    figures = {
        "rows": found.rows,
        "test_acc_by_epoch": by_epoch,
        "estimated_seconds": plan["estimated_seconds"],
        "n": plan["seeds"],
        "note": args.note,
    }
    print(write_result(f"reproduce-{args.label}", args.device, figures, args.out))


if __name__ == "__main__":
    main()
