"""A recipe: every setting of a training run, as data. This module does not import torch, so it loads instantly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.text import truncate

# The splits that can be evaluated after each epoch, each with the prefix of its metrics. `train` is for training on
# all labelled images: a subset of them is evaluated, without augmentation.
KEYS = {"validation": "val", "test": "test", "train": "train_subset"}
FORMATS = ("contiguous", "channels_last")
LARGEST_SIDE = 8192  # pixels a side of a source's images
LONGEST = 8192  # characters of a string: a source may be a long path, and a name lists changes
# The modes of torch.compile that are tested. On CUDA the step is also captured as a graph, except with
# `reduce-overhead`, which does that itself.
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
# off: eager; record: eager, captured as a CUDA graph; else a mode of torch.compile.
COMPILE = ("off", "record", *COMPILE_MODES)
_OVERFIT_UPDATES = 200  # the recipes' networks memorize a batch in fewer
# The metrics that can select the best epoch, each with its key after the split's prefix.
SELECT = {"accuracy": "acc", "balanced_accuracy": "balanced_acc", "macro_f1": "macro_f1", "loss": "loss"}
SCHEDULES = ("constant", "cosine", "one-cycle", "step", "trapezoid")


def _setting(
    default: Any, help: str, low: float | None = None, high: float | None = None, choices: Sequence[str] = ()
) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run, in natural units. Frozen: derive another with `dataclasses.replace`.

    Steps and per-step learning rates are computed in `cnnlab.training`, never stored here.

    Raise CnnlabError, naming the setting and its bounds, for a value out of range.
    """

    name: str = _setting("custom", "name of the recipe")
    model: str = _setting("lenet-bn", "network: `cnnlab list models`")
    data: str = _setting("digits", "images: `cnnlab list data`")
    columns: str = _setting(
        "", "csv, hf, wds and parquet: names of columns: path=file,label=species,split=set,group=patient,weight=w"
    )

    epochs: int = _setting(10, "passes over the training images", 1, 100_000)
    batch_size: int = _setting(256, "images per step, of all processes together", 1, 1_000_000)
    micro_batch: int = _setting(
        0, "images that go through the network at once, in each process; their gradients add up; 0: all", 0, 1_000_000
    )
    optimizer: str = _setting("sgd", "optimizer", choices=("sgd", "adamw", "muon"))
    learning_rate: float = _setting(0.1, "peak learning rate; the loss is the mean over a batch", 0, 1000)
    other_learning_rate: float = _setting(
        0.01, "muon: learning rate of AdamW, for all but the convolutions' weights", 0, 1000
    )
    momentum: float = _setting(0.0, "sgd, muon: momentum", 0, 0.9999)
    nesterov: bool = _setting(False, "sgd: Nesterov momentum")
    weight_decay: float = _setting(0.0, "weight decay", 0, 100)
    schedule: str = _setting("constant", "learning-rate schedule", choices=SCHEDULES)
    warmup: float = _setting(0.25, "one-cycle, trapezoid: fraction of the steps in which the learning rate rises", 0, 1)
    cooldown: float = _setting(0.25, "trapezoid: fraction of the steps in which the learning rate falls", 0, 1)
    decay: float = _setting(0.1, "step: factor of the learning rate", 0, 1)
    decay_every: int = _setting(30, "step: epochs between two decays", 1, 100_000)
    clip_norm: float = _setting(0.0, "gradient clipping: largest norm of the gradient; 0: off", 0, 1e9)
    label_smoothing: float = _setting(0.0, "label smoothing", 0, 0.9999)
    balance: str = _setting(
        "none",
        "classes of unequal size; weights: in the loss, inversely proportional to a class's images; sampler: an epoch "
        "draws each class equally often",
        choices=("none", "weights", "sampler"),
    )
    init: str = _setting(
        "pytorch",
        "weight initialization; pytorch: PyTorch's defaults",
        choices=("pytorch", "xavier-uniform", "he-normal"),
    )

    freeze_epochs: int = _setting(
        0, "first epochs in which only the last layer is trained, without augmentation, on fixed features", 0, 100_000
    )
    layer_decay: float = _setting(1.0, "learning rate of each stage as a fraction of the next stage's", 0.01, 1)
    freeze_batch_norm: bool = _setting(False, "batch norm uses its running statistics and does not update them")
    sync_batch_norm: bool = _setting(
        False, "several processes: batch norm normalises over the whole batch, not over each process's part"
    )

    image_size: int = _setting(0, "input size of the network, pixels a side; 0: the source's own", 0, 4096)
    start_size: int = _setting(0, "progressive resizing: pixels a side in the first epoch; 0: off", 0, 4096)
    fit: str = _setting("pad", "how an image is made square", choices=("pad", "crop", "stretch"))
    background: str = _setting(
        "auto", "colour behind transparent pixels; auto: white behind dark drawings", choices=("auto", "black", "white")
    )
    normalize: bool = _setting(True, "subtract the training images' mean and divide by their standard deviation")
    shift: int = _setting(0, "augmentation: largest random translation, in pixels of the network's input", 0, 512)
    shift_fill: str = _setting("zeros", "shift: padding", choices=("zeros", "reflect"))
    flip: bool = _setting(False, "augmentation: random horizontal flip")
    alternating_flip: bool = _setting(False, "flip: flip each image every other epoch, not at random")
    vertical_flip: bool = _setting(False, "augmentation: random vertical flip")
    rotation: float = _setting(0.0, "augmentation: largest random rotation either way, in degrees", 0, 180)
    zoom: float = _setting(0.0, "augmentation: largest random change of scale either way, as a fraction", 0, 10)
    shear: float = _setting(0.0, "augmentation: largest random shear either way, in degrees", 0, 75)
    fill: str = _setting(
        "mean",
        "rotation, zoom, shear: what lies outside the image; mean: the mean colour",
        choices=("mean", "zeros", "reflect"),
    )
    crop_scale: float = _setting(1.0, "augmentation: smallest area of a random crop, as a fraction", 0.01, 1)
    crop_ratio: float = _setting(1.0, "augmentation: largest aspect ratio of a random crop, either way", 1, 10)
    brightness: float = _setting(0.0, "augmentation: largest relative change", 0, 10)
    contrast: float = _setting(0.0, "augmentation: largest relative change", 0, 10)
    saturation: float = _setting(0.0, "augmentation: largest relative change of saturation", 0, 10)
    randaugment: int = _setting(0, "augmentation: RandAugment, operations per image", 0, 20)
    magnitude: int = _setting(9, "randaugment: magnitude", 0, 30)
    cutout: int = _setting(0, "augmentation: cutout, side of the square in pixels", 0, 512)
    mixup: float = _setting(0.0, "augmentation: mixup, alpha of the Beta distribution", 0, 100)
    cutmix: float = _setting(0.0, "augmentation: CutMix, alpha of the Beta distribution", 0, 100)

    precision: str = _setting(
        "float32",
        "auto: bfloat16 or float16 if the device supports it and a short trial finds it faster",
        choices=("float32", "bfloat16", "float16", "auto"),
    )
    memory_format: str = _setting(
        "auto", "memory format of tensors; auto: the faster one in a short trial", choices=("auto", *FORMATS)
    )
    compile: str = _setting(
        "auto",
        "mode of torch.compile; record: a CUDA graph without compiling; auto: chosen for the device and the run",
        choices=("auto", *COMPILE),
    )
    average: str = _setting(
        "none", "averaged weights: exponential moving average or lookahead", choices=("none", "ema", "lookahead")
    )
    average_decay: float = _setting(0.999, "average: decay per update of the average", 0, 0.999999)
    average_every: int = _setting(1, "average: steps between two updates of the average", 1, 100_000)
    on_nan: str = _setting("stop", "when the loss is NaN or Inf: stop, or skip the update", choices=("stop", "skip"))
    save_seconds: float = _setting(60.0, "seconds between two checkpoints within an epoch; 0: none", 0, 1e9)
    save_steps: int = _setting(0, "steps between two checkpoints within an epoch; 0: none", 0, 2**31 - 1)

    overfit: int = _setting(
        0,
        "train on only this many batches, without augmentation, and evaluate on the same images: can the network learn "
        "them?; 0: off",
        0,
        1000,
    )
    limit: int = _setting(0, "largest number of images of each split, stratified; 0: all", 0, 2**31 - 1)
    val_fraction: float = _setting(0.1, "fraction of the training images held out for validation, stratified", 0, 0.9)
    eval_split: str = _setting("validation", "split evaluated after each epoch", choices=tuple(KEYS))
    select: str = _setting("accuracy", "validation metric that selects the best epoch", choices=tuple(SELECT))
    patience: int = _setting(0, "epochs without improvement of that metric before training stops; 0: off", 0, 100_000)
    seed: int = _setting(0, "random seed of the weights, the order of images, dropout and augmentation", 0, 2**31 - 1)
    split_seed: int = _setting(0, "random seed of the validation split", 0, 2**31 - 1)
    group: str = _setting(
        "auto",
        "images of a group stay on one side of the validation split; auto: the source's groups, if it has some; none; "
        "parent: the folder below the class's; or a regular expression, searched in the file's name below the source's "
        "folder: its first parenthesis, or all of it, is the group",
    )
    group_duplicates: bool = _setting(False, "keep near duplicates on one side of the validation split, too")
    folds: int = _setting(0, "parts of the images for cross-validation, in place of val_fraction; 0: off", 0, 1000)
    fold: int = _setting(0, "folds: the part to evaluate on, from 1; 0: each in a run of its own", 0, 1000)

    def __post_init__(self) -> None:
        for name in TYPES:
            value: Any = getattr(self, name)
            checked = check_value(name, value)
            if checked is not value:
                object.__setattr__(self, name, checked)
        if self.overfit:  # the same images are trained on and evaluated
            if self.folds:
                raise CnnlabError(f"folds={self.folds} and overfit={self.overfit}: leave one out")
            for name, value in {"eval_split": "train", "select": "accuracy", "patience": 0}.items():
                object.__setattr__(self, name, value)
        if self.eval_split == "validation" and self.val_fraction == 0 and not self.folds:
            raise CnnlabError(
                "val_fraction=0.0 leaves nothing to evaluate on; hold some images out, or set eval_split=test to "
                "evaluate on the test set after each epoch"
            )
        try:
            re.compile(self.group)
        except (re.error, RecursionError, OverflowError) as error:
            raise CnnlabError(
                f"group={_short(self.group)}: choose auto, none or parent, or correct the expression: {error}"
            ) from error
        if self.folds == 1:
            raise CnnlabError("folds=1: choose at least 2, or 0 for none")
        if self.fold > self.folds:
            have = f"there are {self.folds} folds; choose 1 to {self.folds}" if self.folds else "set folds, too"
            raise CnnlabError(f"fold={self.fold}: {have}")
        if self.folds and self.eval_split != "validation":
            raise CnnlabError(f"folds={self.folds} needs eval_split=validation, not {self.eval_split}; leave one out")
        for name in ("patience", "select"):
            value = getattr(self, name)
            if value != SETTINGS[name].default and self.eval_split != "validation":
                what = "would select by the test set" if self.eval_split == "test" else "leaves nothing to select by"
                raise CnnlabError(
                    f"{name}={value} with eval_split={self.eval_split} {what}; set eval_split=validation and a "
                    f"val_fraction above 0, or {name}={SETTINGS[name].default}"
                )
        if self.optimizer == "muon" and self.learning_rate == 0:
            raise CnnlabError("learning_rate=0.0: muon needs a learning rate above 0")
        if self.alternating_flip and not self.flip:
            raise CnnlabError("alternating_flip=True needs flip; set flip=true, or alternating_flip=false")
        if self.average == "lookahead" and self.average_decay > 0.9:
            raise CnnlabError(
                f"average_decay={self.average_decay}: with lookahead the network would hardly move; set "
                "average_decay=0.5 and average_every=5, as in the paper"
            )
        if self.schedule == "trapezoid" and self.warmup + self.cooldown > 1:
            raise CnnlabError(f"warmup={self.warmup} and cooldown={self.cooldown}: together they must be at most 1")
        if self.start_size > self.image_size > 0:
            raise CnnlabError(f"start_size={self.start_size} is larger than image_size={self.image_size}; choose less")
        if self.nesterov and self.momentum == 0:
            raise CnnlabError("nesterov=True needs momentum above 0; set momentum, or nesterov=false")

    @property
    def key(self) -> str:
        """The prefix of the evaluated split's metrics: `val`, `test` or `train_subset`."""
        return KEYS[self.eval_split]

    @property
    def passes(self) -> int:
        """Passes over the training images per epoch: 1; with `overfit`, enough for 200 updates in total."""
        return max(1, math.ceil(_OVERFIT_UPDATES / (self.epochs * self.overfit))) if self.overfit else 1

    @property
    def best_by(self) -> str:
        """The metric that selects the best epoch, such as `val_acc`; `loss`, the training loss, without validation."""
        return f"val_{SELECT[self.select]}" if self.eval_split == "validation" else "loss"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, in their order."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Return the recipe from the values of `to_dict`. Raise CnnlabError for an unknown, missing or bad setting."""
        for key in values:
            if key not in SETTINGS:
                raise unknown("setting", key, SETTINGS)
        missing = SETTINGS.keys() - values.keys()
        if missing:
            raise CnnlabError(f"it lacks {', '.join(sorted(missing))}")
        return cls(**values)

    def with_settings(self, settings: Sequence[str]) -> Recipe:
        """Return a copy with `key=value` settings applied. Its name lists the changes.

        Raise CnnlabError for a setting without `=`, an unknown key, suggesting similar ones, or a bad value.
        """
        return self.changed(**parse_settings(settings))

    def changed(self, **changes: Any) -> Recipe:
        """Return a copy with `changes`. Its name lists those that differ, so that a report cannot hide them.

        The changes are listed now, because the recipe of that name may be different later. `dataclasses.replace` keeps
        the name.

        Raise CnnlabError for an unknown setting, suggesting similar ones, or a bad value.
        """
        for key in changes:
            if key not in SETTINGS:
                raise unknown("setting", key, SETTINGS)
        listed = [f"{k}={v}" for k, v in changes.items() if k not in _UNLISTED and getattr(self, k) != v]
        name = changes.pop("name", self.name)
        return replace(self, **changes, name=", ".join([name, *listed]))


def check_value(name: str, value: Any) -> Any:
    """Check and return a value of the setting `name`. An int becomes a float if the setting is one.

    Raise CnnlabError, naming the setting, for another type or a value out of range.
    """
    kind, rule = TYPES[name], SETTINGS[name].metadata
    if kind is float and type(value) is int and abs(value) < 10**300:  # larger ones are out of bounds anyway
        value = float(value)
    given = type(value)  # not isinstance: a bool must not pass as an int
    if given is not kind:
        raise CnnlabError(f"{name}={_short(value)}: {_EXPECTED[kind]}")
    if rule["choices"] and value not in rule["choices"]:
        raise CnnlabError(f"{name}={_short(value)}: choose one of {', '.join(rule['choices'])}")
    if kind is float and not math.isfinite(value):
        raise CnnlabError(f"{name}={value!r}: must be a finite number")
    if rule["low"] is not None and not rule["low"] <= value <= rule["high"]:
        raise CnnlabError(f"{name}={_short(value)}: must lie between {rule['low']} and {rule['high']}")
    if isinstance(value, str) and len(value) > LONGEST:
        raise CnnlabError(f"{name}={_short(value)}: at most {LONGEST:,} characters")
    return value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value` settings into a dict. Raise CnnlabError as `Recipe.with_settings` does."""
    changes: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise CnnlabError(f"setting {text!r} has no value; write key=value")
        if key not in SETTINGS:
            raise unknown("setting", key, SETTINGS)
        if key == "name":
            raise CnnlabError("name is not a setting to change; --name names the run")
        changes[key] = _parse(key, value.strip())
    return changes


def _short(value: object) -> str:
    """Return `value`, shortened for an error message. It may be a number of thousands of digits, or deeply nested."""
    if isinstance(value, int) and value.bit_length() > 400:
        return "a number of over 100 digits"
    try:
        return truncate(repr(value), 60)
    except RecursionError:
        return type(value).__name__


def _parse(key: str, text: str) -> Any:
    kind = TYPES[key]
    if kind is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
    elif kind is str:
        return text
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise CnnlabError(f"{key}={truncate(text, 60)!r}: {_EXPECTED[kind]}")


_EXPECTED: dict[type, str] = {
    bool: "expected true or false",
    int: "expected a whole number",
    float: "expected a number",
    str: "expected a string",
}
SETTINGS = {f.name: f for f in fields(Recipe)}
# Not listed in the name when changed: they do not change the weights, or are reported separately, like the seed.
_UNLISTED = {"name", "columns", "seed", "fold", "save_seconds", "save_steps"}
TYPES: dict[str, type] = get_type_hints(Recipe)


def metric_label(key: str) -> str:
    """Return the key of a metric as it is printed: `val macro F1` for `val_macro_f1`."""
    return key.replace("_f1", "_F1").replace("_", " ")


def recipe_json(recipe: Recipe) -> str:
    """Return the recipe as the text of a JSON file."""
    return json.dumps(recipe.to_dict(), indent=2, ensure_ascii=False) + "\n"
