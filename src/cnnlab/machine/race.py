"""Races: how long a recipe takes to reach an accuracy on this machine, under rules that make it repeatable.

The rules are those of docs/leaderboard.md: every setting was chosen on the validation split, each seed has its own
process, the test set is evaluated once per seed, after the last epoch, every seed counts, and the claim is that the
mean accuracy reaches the target.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtr

from cnnlab.data import PATHS, SourceOptions, data_folder, load_images
from cnnlab.data.imageset import Report, no_report
from cnnlab.defaults import choose_recipe
from cnnlab.device.hardware import available_cores, check_threads, environment, pick_device
from cnnlab.device.precision import PRECISIONS
from cnnlab.io.errors import CnnlabError, reason, unknown
from cnnlab.io.files import read_json, write_atomic, write_json
from cnnlab.io.schema import COUNT, NUMBER, check
from cnnlab.io.text import plural
from cnnlab.machine.peak import peak
from cnnlab.machine.timed import timed_process
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES


@dataclass(frozen=True)
class Race:
    """An accuracy to reach, as a fraction. views: for the evaluation, a key of VIEWS. data: "": the recipe's."""

    recipe: str
    target: float
    views: str = "none"
    data: str = ""


FEWEST = 5  # seeds of a record on the leaderboard
RACES = {
    "mnist-99": Race("speed/mnist-99", 0.99),
    "mnist-99.5": Race("speed/mnist-99.5", 0.995),
    "fashion-90": Race("speed/fashion-90", 0.90),
    "fashion-92": Race("speed/fashion-92", 0.92, "flip"),
    "fashion-93": Race("speed/fashion-93", 0.93, "flip"),
    "fashion-94": Race("speed/fashion-94", 0.94, "flip"),
    "fashion-95": Race("speed/fashion-95", 0.95, "flip"),
    "fashion-96": Race("speed/fashion-96", 0.96, "flip"),
    "cifar-90": Race("speed/cifar-90", 0.90, "shift", "cifar10"),
    "cifar-94": Race("speed/cifar-94", 0.94, "shift", "cifar10"),
    "cifar-96": Race("speed/cifar-96", 0.96, "shift", "cifar10"),
    "cifar100-70": Race("speed/cifar100-70", 0.70, "shift"),
    "cifar100-75": Race("speed/cifar100-75", 0.75, "shift"),
}


_SEED = {"seed": COUNT, "final_split": str, "final_acc": NUMBER, "race_seconds": NUMBER, "process_seconds": NUMBER,
         "energy_joules": (None, NUMBER), "plan": {"dtype": str, "threads": COUNT}, "epochs": [dict]}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """The result of a race, on `split`, over n seeds.

    accuracy, training_seconds, process_seconds: mean and std. The training seconds cover whitening, training and the
    one evaluation; the process seconds, the process from start to exit. p_value: see `p_value`. peak: floating-point
    operations per second of a matrix product on this machine, in the training's precision. work: mean training seconds
    times peak, to compare machines. energy_joules: the processor's over all seeds, where the system reports it. commit:
    see `commit`.
    """

    race: str
    target: float
    split: str
    views: str
    n: int
    accuracy: dict[str, float]
    p_value: float | None
    training_seconds: dict[str, float]
    process_seconds: dict[str, float]
    peak: float
    work: float
    energy_joules: float | None
    environment: dict[str, Any]
    recipe: dict[str, Any]
    commit: str | None
    command: str
    per_seed: list[dict[str, Any]]

    @property
    def reached(self) -> bool:
        """Whether the mean accuracy is at least the target."""
        return self.accuracy["mean"] >= self.target

    def row(self) -> str:
        """Return the record as a row of the table in docs/leaderboard.md."""
        a, t, w, e = self.accuracy, self.training_seconds, self.process_seconds, self.environment
        p = "" if self.p_value is None else f"{self.p_value:.2g}"
        threads, cores = self.per_seed[0]["plan"]["threads"], plural(e["cores"], "core")
        used = f"{threads} of {cores}" if threads < e["cores"] else cores
        hardware = e["device_name"] if e["device"].startswith("cuda") else f"{e['device_name']}, {used}"
        return (
            f"| {self.race} | {a['mean']:.4f} ± {a['std']:.4f} ({self.split}, n = {self.n}) | {p} | "
            f"{t['mean']:.1f} ± {t['std']:.1f} | {w['mean']:.1f} ± {w['std']:.1f} | {self.work / 1e12:,.1f} | "
            f"{hardware} ({e['cpu_capability']}) | {e['date'][:10]} |"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the rows of the epochs, which are in the log."""
        seeds = [{key: value for key, value in seed.items() if key != "epochs"} for seed in self.per_seed]
        return {**asdict(self), "reached": self.reached, "per_seed": seeds}

    def save(self, folder: Path) -> None:
        """Write record.json and log.txt, a line for each epoch, into `folder`. Raise CnnlabError."""
        lines = [
            f"seed {seed['seed']}: {json.dumps(row)}" for seed in self.per_seed for row in seed["epochs"]
        ] + [_seed_line(seed) for seed in self.per_seed]  # fmt: skip
        try:
            write_json(folder / "record.json", self.to_dict())
            write_atomic(folder / "log.txt", ("\n".join(lines) + "\n").encode())
        except OSError as error:
            raise CnnlabError(f"cannot write into {folder}: {reason(error)}; name another folder with --out") from error


def race(
    name: str,
    folder: Path,
    *,
    seeds: int = FEWEST,
    data: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    report: Report = no_report,
) -> Record:
    """Train a race's recipe with seeds 0, 1, ... and return what it reached and how long it took.

    name: a key of RACES. folder: gets seeds.jsonl, a line for each finished seed; a stopped race continues from it.
    data: the source. Default: the race's. Without test labels the accuracy is measured on the validation split.
    Raise CnnlabError.
    """
    if name not in RACES:
        raise unknown("race", name, RACES)
    if seeds < 1:
        raise CnnlabError(f"seeds={seeds}: must be at least 1")
    check_threads(threads)
    target, threads = pick_device(device), threads or available_cores()
    one = RACES[name]
    source = data or one.data
    recipe = choose_recipe(recipe=one.recipe, data=source or None)
    options = SourceOptions(data_dir=data_folder(data_dir), report=report)
    split = "validation" if load_images(recipe.data, "test", options) is None else "test"
    here = {key: value for key, value in environment(target).items() if key != "date"}
    conditions = {"race": name, "recipe": recipe.to_dict(), "split": split, "threads": threads,
                  "commit": commit(), **here}  # fmt: skip
    done = _finished(folder, conditions)
    meter = Energy()
    for seed in range(len(done), seeds):
        found = timed_process(
            recipe.changed(seed=seed), split, one.views, device, threads=threads,
            data_dir=None if data_dir is None else str(data_dir), as_trained=True,
        )  # fmt: skip
        done.append({**found, "energy_joules": meter.since_last()})
        _append(folder / "seeds.jsonl", done[-1])
        report("racing", seed + 1, seeds)
    done = done[:seeds]
    command = f"cnnlab race {name} --seeds {seeds} --threads {threads}"
    command += "" if device == "auto" else f" --device {device}"
    command += "" if recipe.data == (one.data or RECIPES[one.recipe].data) else f" --data {_public(recipe.data)}"
    return _record(name, one, recipe, split, done, environment(target), threads, command)


def commit() -> str | None:
    """Return the commit of the checkout that cnnlab runs from, with "+" if src/ was changed; None outside one."""
    source = Path(__file__).parents[2]
    if source.name != "src":  # installed, maybe inside somebody's own repository
        return None
    git = ["git", "-C", str(source)]
    try:
        head, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()  # noqa: S603 - no user's text
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except OSError:  # no git
        return None
    return head + ("+" if changed else "") if head else None


def p_value(accuracies: Sequence[float], target: float) -> float | None:
    """Return the p-value of a one-sided t-test with the null hypothesis that the true mean is at most `target`.

    None for a single accuracy.

    Student (W. S. Gosset), The probable error of a mean, Biometrika 6 (1908).
    """
    n = len(accuracies)
    if n < 2:
        return None
    distance, spread = fmean(accuracies) - target, stdev(accuracies)
    if spread == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(n - 1, -distance / (spread / math.sqrt(n))))


class Energy:
    """The processor's energy counters (RAPL of Linux, which often only root may read)."""

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        # Only packages (intel-rapl:0), which include their parts (intel-rapl:0:0).
        self._zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last = self._read()

    def since_last(self) -> float | None:
        """Return the joules since the last call; None where the system does not report them."""
        before, self._last = self._last, self._read()
        if not before or len(before) != len(self._last):
            return None
        # A counter restarts at zero after its largest value.
        return sum((now - then) % most for (then, _), (now, most) in zip(before, self._last, strict=True)) / 1e6

    def _read(self) -> list[tuple[int, int]]:
        """Return each zone's microjoules and the range of its counter."""
        found = []
        with suppress(OSError, ValueError):
            for zone in self._zones:
                energy, most = (int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
                found.append((energy, most + 1))
            return found
        return []


def _record(
    name: str, one: Race, recipe: Recipe, split: str, seeds: list[dict[str, Any]], env: dict[str, Any], threads: int,
    command: str,
) -> Record:  # fmt: skip
    accuracies = [seed["final_acc"] for seed in seeds]
    training = _spread([seed["race_seconds"] for seed in seeds])
    best = peak(pick_device(env["device"]), PRECISIONS[seeds[0]["plan"]["dtype"]], threads)["flops_per_second"]
    energies = [seed["energy_joules"] for seed in seeds]
    return Record(
        race=name, target=one.target, split=split, views=one.views, n=len(seeds), accuracy=_spread(accuracies),
        p_value=p_value(accuracies, one.target), training_seconds=training,
        process_seconds=_spread([seed["process_seconds"] for seed in seeds]), peak=best, work=training["mean"] * best,
        energy_joules=sum(energies) if None not in energies else None, environment=env,
        recipe={**recipe.to_dict(), "data": _public(recipe.data), "name": one.recipe}, commit=commit(),
        command=command, per_seed=seeds,
    )  # fmt: skip


def _public(source: str) -> str:
    """Return a source without this machine's folders."""
    kind = next((kind for kind in PATHS if source.startswith(kind)), "")
    return f"{kind}{Path(source.removeprefix(kind)).name}" if kind else source


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0}


def _seed_line(seed: dict[str, Any]) -> str:
    return (
        f"seed {seed['seed']}: {seed['final_split']} acc {seed['final_acc']:.4f}; "
        f"training {seed['race_seconds']:.2f} s, whole process {seed['process_seconds']:.2f} s"
    )


def _finished(folder: Path, conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the seeds that an earlier call finished in `folder` under the same conditions. Raise CnnlabError."""
    file, lines = folder / "conditions.json", folder / "seeds.jsonl"
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise CnnlabError(f"{folder} is not empty and holds no race; name another folder with --out")
            write_json(file, conditions)
            return []
        before = read_json(file)
        found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    except (OSError, ValueError) as error:
        raise CnnlabError(f"cannot continue in {folder}: {reason(error)}; name another folder with --out") from error
    check(lines, {"seeds": found}, {"seeds": [_SEED]}, "name another folder with --out")
    if changed := [key for key in conditions if before.get(key) != json.loads(json.dumps(conditions[key]))]:
        raise CnnlabError(f"{folder} holds a race under other conditions ({', '.join(changed)}); name another --out")
    return found


def _append(file: Path, row: dict[str, Any]) -> None:
    try:
        before = file.read_bytes() if file.exists() else b""
        write_atomic(file, before + json.dumps(row).encode() + b"\n")
    except OSError as error:
        raise CnnlabError(f"cannot write {file}: {reason(error)}; name another folder with --out") from error


def races_table() -> list[tuple[str, str, str, str]]:
    """Return the name, recipe, target and source of each race."""
    return [
        (name, one.recipe, f"{one.target:.3f}", one.data or RECIPES[one.recipe].data) for name, one in RACES.items()
    ]
