"""A sweep's TOML file: what is trained, what is searched, and where the trials are stored."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from cnnlab.io.errors import CnnlabError, expand, reason, unknown
from cnnlab.io.files import read_limited
from cnnlab.io.text import truncate
from cnnlab.models import build_model
from cnnlab.models.own import is_file
from cnnlab.recipe import SETTINGS, TYPES, Recipe, check_value
from cnnlab.training.choice import choose
from cnnlab.training.folders import check_name

POSTGRESQL = "postgresql://"
MOST_TRIALS = 100_000
_MOST_SEEDS = 1000
_MOST_STEPS = 1_000_000_000
_LONGEST_NAME = 80  # characters; the runs' names add the trial's number and the seed
_OTHER_IMAGES = "it changes the validation images, and figures on different images cannot be compared"
_SPLIT = ("columns", "limit", "val_fraction", "split_seed", "group", "group_duplicates", "folds", "fold", "eval_split")
# Settings that are not searched, each with the reason and the remedy.
NOT_SEARCHED = {
    "name": "it names the recipe; leave it out",
    "data": f'{_OTHER_IMAGES}; write data = "..." at the top of the file',
    **dict.fromkeys(_SPLIT, f"{_OTHER_IMAGES}; move it to [settings]"),
    "overfit": "it evaluates on training images; leave it out",
    "select": "figures of different kinds cannot be compared; move it to [settings]",
    "seed": "a seed that does well is luck; write seeds = 3 at the top for the mean over three",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included. log: on a logarithmic scale. step: only low, low + step, ..."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def extremes(self) -> tuple[float, ...]:
        """The values that break a rule between settings if any do: both ends, and the second lowest."""
        step = self.step if self.step is not None else (1 if isinstance(self.low, int) else None)
        return tuple(
            dict.fromkeys((self.low, self.high, *(() if step is None else (min(self.high, self.low + step),))))
        )


@dataclass(frozen=True)
class Choices:
    """The listed values of a setting."""

    values: tuple[Any, ...]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values."""
        return self.values


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of a sweep's file. search: by setting. storage: a journal file, or a PostgreSQL database's URL."""

    file: Path
    name: str
    storage: Path | str
    search: dict[str, Range | Choices]
    data: str | None = None
    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    trials: int = 20
    seeds: int = 1
    pruning: bool = True
    sampler_seed: int = 0

    def recipe_of(self, params: dict[str, Any], seed: int = 0) -> tuple[Recipe, frozenset[str] | None]:
        """Return a trial's recipe for seed number `seed`, counted from 0, and the value of `Session.given`.

        params: the values of the searched settings. Raise CnnlabError if they do not fit together.
        """
        changes = {**self.settings, **params}
        model = changes.pop("model", None)
        if seed:
            changes["seed"] = changes.get("seed", self.base.seed) + seed
        recipe, _, _, given = choose(self.recipe, model, self.data, changes)
        return recipe, given

    @property
    def base(self) -> Recipe:
        """The recipe with the fixed settings and, for each searched setting, its lowest or first value."""
        return self.recipe_of({name: space.extremes[0] for name, space in self.search.items()})[0]

    @property
    def figure(self) -> str:
        """The validation figure by which trials are compared, such as `val_acc`."""
        return self.base.best_by

    @property
    def minimize(self) -> bool:
        """Whether a lower figure is better."""
        return self.figure.endswith("loss")

    @property
    def definition(self) -> dict[str, Any]:
        """What all trials of a study share, as JSON values. Trials that differ in it cannot be compared."""
        search = {name: {**vars(space), "kind": type(space).__name__} for name, space in self.search.items()}
        value = {**self.base.to_dict(), "seeds": self.seeds, "search": search}
        return dict(json.loads(json.dumps(value)))

    @property
    def recipe_file(self) -> Path:
        """The file of the best trial's recipe, beside the sweep's file."""
        return self.file.with_name(f"{self.file.stem}.best.json")

    @property
    def page_file(self) -> Path:
        """The file of the page, beside the sweep's file."""
        return self.file.with_name(f"{self.file.stem}.html")

    def run_name(self, trial: int, seed: int) -> str:
        """Return the name of a trial's run for seed number `seed`."""
        return f"{self.name}-{trial:03d}" + (f"-seed-{seed}" if self.seeds > 1 else "")


def read_sweep(file: str | Path) -> Sweep:
    """Read a sweep's TOML file, and check all of it before anything is trained.

    Raise CnnlabError: one line with the file, the field and the remedy.
    """
    path = expand(file)
    try:
        values = tomllib.loads(read_limited(path, 1 << 20).decode())
    except FileNotFoundError as error:
        raise CnnlabError(f"{path} does not exist; name a sweep's TOML file") from error
    except (ValueError, RecursionError) as error:
        raise CnnlabError(f"{path} is not TOML: {reason(error)}") from error
    try:
        sweep = _sweep(path, values)
        _check_together(sweep)
    except CnnlabError as error:
        text = str(error)
        raise error if text.startswith(str(path)) else CnnlabError(f"{path}: {text}") from error
    return sweep


_KEYS: dict[str, type] = {
    "name": str, "data": str, "recipe": str, "trials": int, "seeds": int, "pruning": bool, "sampler_seed": int,
    "storage": str, "settings": dict, "search": dict,
}  # fmt: skip
_EXPECTED = {str: "a quoted string", int: "a whole number", bool: "true or false", dict: "a table"}
_BOUNDS = {"trials": (1, MOST_TRIALS), "seeds": (1, _MOST_SEEDS), "sampler_seed": (0, 2**32 - 1)}


def _sweep(path: Path, values: dict[str, Any]) -> Sweep:
    for key, value in values.items():
        given = type(value)  # not isinstance: a bool is an int
        if key not in _KEYS:
            place = "searched" if isinstance(value, dict) else "set"
            table = "[search]" if isinstance(value, dict) else "[settings]"
            hint = f"; a setting that is {place} belongs under {table}" if key in SETTINGS else ""
            raise CnnlabError(f"{unknown('key', key, _KEYS)}{hint}")
        if given is not _KEYS[key]:
            raise CnnlabError(f"{key} = {_text(value)}: expected {_EXPECTED[_KEYS[key]]}")
        if key in _BOUNDS and not _BOUNDS[key][0] <= value <= _BOUNDS[key][1]:
            raise CnnlabError(f"{key} = {value}: must lie between {_BOUNDS[key][0]} and {_BOUNDS[key][1]:,}")
    name = values.get("name", path.stem)
    try:
        check_name(name)
    except CnnlabError as error:
        source = "" if "name" in values else ' in the file\'s name; or write name = "..."'
        raise CnnlabError(f"name: {error}{source}") from error
    if len(name) > _LONGEST_NAME:
        raise CnnlabError(f"name = {_text(name)}: at most {_LONGEST_NAME} characters")
    settings = {key: _setting(key, value) for key, value in values.get("settings", {}).items()}
    searched = values.get("search", {})
    if not searched:
        raise CnnlabError("[search] is empty; name a setting there: learning_rate = { low = 0.001, high = 1.0 }")
    if twice := sorted(settings.keys() & searched.keys()):
        raise CnnlabError(f"{twice[0]} is under [settings] and under [search]; leave one out")
    search = {key: _space(key, value) for key, value in searched.items()}
    more = {key: values[key] for key in ("data", "recipe", "trials", "seeds", "pruning", "sampler_seed")
            if key in values}  # fmt: skip
    storage = _storage(path, values.get("storage", f"{path.stem}.journal"))
    return Sweep(file=path, name=name, storage=storage, settings=settings, search=search, **more)


def _text(value: object) -> str:
    return truncate(json.dumps(value, default=str, ensure_ascii=False), 60)


def _storage(path: Path, text: str) -> Path | str:
    scheme, separator, rest = text.partition("://")
    if scheme in ("postgresql", "postgres") and separator:
        try:
            _ = urlsplit(text).port
        except ValueError as error:  # its message may quote a part of the password
            raise CnnlabError(
                "storage: the host or the port is not valid; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with "
                "special characters of the password as %XX"
            ) from error
        return f"{POSTGRESQL}{rest}"
    if separator:
        raise CnnlabError(f"storage: {truncate(scheme)}:// is not supported; write postgresql://..., or a file's name")
    file = path.parent / expand(text)
    if not text or file.is_dir():
        raise CnnlabError(f"storage = {_text(text)}: name a file, or postgresql://USER@HOST/DATABASE")
    if not file.parent.is_dir():
        raise CnnlabError(f"storage: the folder {file.parent} does not exist; create it first")
    return file


def _setting(key: str, value: Any) -> Any:
    if key not in SETTINGS:
        raise CnnlabError(f"[settings] {unknown('setting', key, SETTINGS)}")
    if key in ("name", "data"):
        raise CnnlabError(f"[settings] {key}: write it at the top of the file")
    if key == "model" and isinstance(value, str):
        _check_model(value)
    try:
        return check_value(key, value)
    except CnnlabError as error:
        is_space = isinstance(value, dict)
        raise CnnlabError(f"[settings] {error}{'; a range belongs under [search]' if is_space else ''}") from error


def _check_model(name: str) -> None:
    if is_file(name):
        raise CnnlabError(f"model={name}: a sweep trains networks of `cnnlab list models`, timm: and torchvision:")


def _space(key: str, value: Any) -> Range | Choices:
    """Return the search space of the setting `key`. Raise CnnlabError."""
    try:
        if key not in SETTINGS:
            raise unknown("setting", key, SETTINGS)
        if key in NOT_SEARCHED:
            raise CnnlabError(f"{key} cannot be searched: {NOT_SEARCHED[key]}")
        if not isinstance(value, dict):
            raise CnnlabError(f"{key} = {_text(value)}: write {_form(key)}, or move it to [settings]")
        for name in value:
            if name not in ("low", "high", "log", "step", "choices"):
                raise CnnlabError(f"{key}: {unknown('key', name, ('low', 'high', 'log', 'step', 'choices'))}")
        return _choices(key, value) if "choices" in value else _range(key, value)
    except CnnlabError as error:
        raise CnnlabError(f"[search] {error}") from error


def _form(key: str) -> str:
    if TYPES[key] is bool:
        return "{ choices = [true, false] }"
    if TYPES[key] is str:
        some = SETTINGS[key].metadata["choices"][:2] or ("...", "...")
        return f"{{ choices = {json.dumps(list(some))} }}"
    return "{ low = ..., high = ... }"


def _choices(key: str, value: dict[str, Any]) -> Choices:
    choices = value["choices"]
    if len(value) > 1:
        raise CnnlabError(
            f"{key}: choices cannot be combined with {', '.join(k for k in value if k != 'choices')}; leave one out"
        )
    if not isinstance(choices, list) or not choices:
        raise CnnlabError(f"{key}: choices = {_text(choices)}: expected a list of values")
    values = tuple(check_value(key, one) for one in choices)
    for one in values if key == "model" else ():
        _check_model(one)
    if len(set(values)) < len(values):
        raise CnnlabError(f"{key}: choices = {_text(choices)} names a value twice; leave one out")
    return Choices(values)


def _range(key: str, value: dict[str, Any]) -> Range:
    if TYPES[key] not in (int, float):
        raise CnnlabError(f"{key} is not a number; write {_form(key)}")
    for name in ("low", "high"):
        if name not in value:
            raise CnnlabError(f"{key}: {name} is missing; write {_form(key)}")
    low, high = check_value(key, value["low"]), check_value(key, value["high"])
    log, step = value.get("log", False), value.get("step")
    if type(log) is not bool:
        raise CnnlabError(f"{key}: log = {_text(log)}: expected true or false")
    if low > high:
        raise CnnlabError(f"{key}: low = {low} is above high = {high}; swap them")
    if log and low <= 0:
        raise CnnlabError(f"{key}: log = true needs low above 0, not {low}")
    if step is None:
        return Range(low, high, log)
    if log:
        raise CnnlabError(f"{key}: log and step exclude each other; leave one out")
    if type(step) not in ((int,) if TYPES[key] is int else (int, float)) or not step > 0:
        raise CnnlabError(f"{key}: step = {_text(step)}: expected a {'whole ' * (TYPES[key] is int)}number above 0")
    if step > high - low:
        raise CnnlabError(f"{key}: step = {step} is wider than the range from {low} to {high}; reduce it")
    if step * _MOST_STEPS < high - low:
        raise CnnlabError(f"{key}: step = {step} is too small for the range from {low} to {high}; leave it out")
    # The highest value that whole steps reach; in decimals, since 0.3 is not three times 0.1 in binary.
    steps = (Decimal(str(high)) - Decimal(str(low))) // Decimal(str(step))
    return Range(low, TYPES[key](Decimal(str(low)) + steps * Decimal(str(step))), log, TYPES[key](step))


def _check_together(sweep: Sweep) -> None:
    """Check that every trial's recipe is valid. Raise CnnlabError.

    A rule of `Recipe` relates at most three settings, and is first broken at an extreme of each. So all triples of
    searched settings are tried at their extremes.
    """
    seen: set[tuple[str, int]] = set()
    for params in _corners(sweep.search):
        try:
            recipe, _ = sweep.recipe_of(params)
        except CnnlabError as error:
            given = ", ".join(f"{key}={value}" for key, value in params.items() if key in str(error))
            raise CnnlabError(f"{f'[search] with {given}: ' if given else ''}{error}") from error
        _check_selection(recipe)
        if (recipe.model, recipe.image_size) not in seen and ":" not in recipe.model:
            seen.add((recipe.model, recipe.image_size))
            with torch.device("meta"):  # shapes without memory
                build_model(recipe.model, num_classes=10, in_channels=1, image_size=recipe.image_size or 256)
    sweep.recipe_of(params, sweep.seeds - 1)  # the last seed may be out of range


def _corners(search: dict[str, Range | Choices]) -> Iterator[dict[str, Any]]:
    first = {name: space.extremes[0] for name, space in search.items()}
    done: set[tuple[Any, ...]] = set()
    for names in itertools.combinations(search, min(3, len(search))):
        for values in itertools.product(*(search[name].extremes for name in names)):
            params = {**first, **dict(zip(names, values, strict=True))}
            if (key := tuple(params.values())) not in done:
                done.add(key)
                yield params


def _check_selection(recipe: Recipe) -> None:
    """Raise CnnlabError unless the recipe is evaluated on images held out for validation, in one run."""
    name = recipe.name.partition(", ")[0]
    if recipe.overfit:
        raise CnnlabError("[settings] overfit evaluates on training images; leave it out")
    if recipe.eval_split != "validation":
        what = {"test": "the test set", "train": "training images"}[recipe.eval_split]
        held_out = " and val_fraction = 0.1" * (recipe.val_fraction == 0)
        raise CnnlabError(
            f"recipe {name!r} evaluates on {what}; a sweep selects on validation images only: write "
            f'eval_split = "validation"{held_out} under [settings]'
        )
    if recipe.folds and not recipe.fold:
        raise CnnlabError(f"[settings] folds={recipe.folds}: a trial is one run; set fold, too, or leave folds out")
