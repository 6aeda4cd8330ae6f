"""Run the whole competition with the documented command: python benchmarks/competition.py LABEL FOLDER [OPTION...]

Runs `cnnlab kaggle all FOLDER OPTION...` as a person would, in an empty work folder and with a new store, so that the
time includes reading the archives. Writes build/results/competition-LABEL_HARDWARE_DATE.json and, beside it, the
submission submission-LABEL.csv. The test labels are not available, so nothing can be tuned on them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import add_out, write_result


def run_summary(path: Path) -> dict[str, Any]:
    """Return the figures, epochs, precision and times from a run's folder."""
    summary = json.loads((path / "summary.json").read_text())
    summary.pop("blake2b", None)  # of the file
    sessions = json.loads((path / "environment.json").read_text())["sessions"]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    columns = ("epoch", "loss", "train_acc", "val_acc", "train_subset_acc", "seconds")
    return {
        **summary,
        "dtype": sessions[0]["dtype"],
        "threads": sessions[0]["threads"],
        "data": "store:PATH",
        "by_epoch": [{k: row[k] for k in columns if k in row} for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=Path, help="folder to work in, and keep. Default: a temporary one")
    add_out(parser)
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.keep or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise SystemExit(f"{work} is not empty: what is finished there would not be timed")
        program = shutil.which("cnnlab") or str(Path(sys.executable).with_name("cnnlab"))
        command = [program, "kaggle", "all", str(args.folder.absolute()), "--store", str(work / "store"), *options]
        start = time.perf_counter()
        subprocess.run([*command, "--progress", "lines"], cwd=work, check=True)
        seconds = time.perf_counter() - start
        home = next((work / "runs").iterdir())
        report = json.loads((home / "report.json").read_text())
        run = report["runs"][0]
        figures: dict[str, Any] = {
            "n": len(report["runs"]),
            "shown_command": " ".join(["cnnlab", "kaggle", "all", "FOLDER", *options]),
            "seconds": seconds,
            "split": f"validation: {report['recipe']['val_fraction']:.0%} of each class, by split_seed 0",
            "validation_accuracy_by_views": report["validation_accuracy_by_views"],
            "validation_confusion": run["validation"]["confusion"],
            "train_accuracy": run["train"]["accuracy"],
            "recipe": report["recipe"] | {"data": "store:PATH"},
            "runs": {},
        }
        for path in sorted(home.rglob("environment.json")):
            figures["runs"][path.parent.relative_to(home).as_posix()] = run_summary(path.parent)
        device = figures["runs"]["train" if "train" in figures["runs"] else "train/seed-0"]["device"]
        submission = home / "submission.csv"
        figures["submission"] = f"submission-{args.label}.csv"
        # The names of the folders are specific to this machine.
        sys.argv[1:] = [args.label, "FOLDER", *(["--keep", "WORK"] if args.keep else []), *options]
        path = write_result(f"competition-{args.label}", device, figures, args.out)
        shutil.copyfile(submission, args.out / figures["submission"])
    print(path)


if __name__ == "__main__":
    main()
