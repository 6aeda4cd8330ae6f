"""Run lessons, solutions included, with several seeds: python benchmarks/lesson_seeds.py [--seeds 3] [LESSON...]

Writes build/results/lesson-NAME_HARDWARE_DATE.json for each lesson: every epoch of every training. The lessons show
these figures (`show.seeds`), and tests/chapter/test_claims.py checks their claims against them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from typing import Any
from unittest.mock import patch

import cnnlab
from _common import add_out, write_result
from cnnlab.chapter import lessons

KEYS = ("loss", "train_acc", "val_acc")


def run(name: str, seed: int) -> list[cnnlab.Result]:
    """Run the code of a lesson in an empty folder, with `seed` for all its trainings. Return them in order."""
    found, train = [], cnnlab.train

    def seeded(*arguments: Any, **settings: Any) -> cnnlab.Result:
        result = train(*arguments, **{**settings, "seed": seed, "progress": "none"})
        result.history  # noqa: B018  # read while the run's folder exists
        found.append(result)
        return result

    code = "\n\n".join(cell.text for cell in lessons.read(name) if not cell.language)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        patch.object(cnnlab, "train", seeded),
    ):
        exec(compile(code, name, "exec"), {"__name__": name})
    return found


def label(result: cnnlab.Result, first: cnnlab.Result) -> str:
    """Return the network and the settings that differ from those of the lesson's first training."""
    settings, usual = result.run.recipe.to_dict(), first.run.recipe.to_dict()
    changes = [
        f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
        for k, v in settings.items()
        if k not in ("name", "model") and v != usual[k]
    ]
    return ", ".join([result.run.recipe.model, *changes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", default=lessons.lessons()[1:-1])
    parser.add_argument("--seeds", type=int, default=3)
    add_out(parser)
    args = parser.parse_args()
    for name in args.lessons:
        trainings: dict[str, dict[str, list[list[float]]]] = {}
        for seed in range(args.seeds):
            found = run(name, seed)
            for result in found:
                figures = trainings.setdefault(label(result, found[0]), {key: [] for key in KEYS})
                for key in KEYS:  # one list per seed, one value per epoch
                    figures[key].append([round(row[key], 4) for row in result.history])
        content = {"lesson": name, "n": args.seeds, "trainings": trainings}
        print(write_result(f"lesson-{name.replace('_', '-')}", "cpu", content, args.out), flush=True)


if __name__ == "__main__":
    main()
