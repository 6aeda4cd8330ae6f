"""A recipe: everything that decides a training, as data. No torch here, so that reading one is instant."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.text import truncate

# The splits that can be watched, each with the name of its figures. `train` is for training on every labelled image:
# it watches some of them, as they are, with the weights of the epoch's end.
KEYS = {"validation": "val", "test": "test", "train": "train_subset"}


FORMATS = ("contiguous", "channels_last")
LARGEST_SIDE = 8192  # pixels of an image as a source gives it
LONGEST = 8192  # characters of a text: a source's is a path, a name's a sum of changes
# Each mode of torch.compile that we know, on CUDA recorded, too (but for `reduce-overhead`, which does it itself).
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
# off: step by step; record: on CUDA, the step's kernels are recorded once and played; or compiled.
COMPILE = ("off", "record", *COMPILE_MODES)
SCHEDULES = ("constant", "cosine", "one-cycle", "step", "trapezoid")


def _setting(
    default: Any, help: str, low: float | None = None, high: float | None = None, choices: Sequence[str] = ()
) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained, in natural units. Frozen: derive another with `dataclasses.replace`.

    Steps and per-step rates are computed in `cnnlab.training.train`, never stored here.

    Raises: CnnlabError, naming the field and its bounds, for a value out of range.
    """

    name: str = _setting("custom", "what this recipe is called")
    model: str = _setting("lenet-bn", "network: `cnnlab list models`")
    data: str = _setting("digits", "images: `cnnlab list data`")

    epochs: int = _setting(10, "passes over the training images", 1, 100_000)
    batch_size: int = _setting(256, "images per step", 1, 1_000_000)
    optimizer: str = _setting("sgd", "what makes the update", choices=("sgd", "adamw", "muon"))
    learning_rate: float = _setting(0.1, "peak step size, for the mean loss of a batch", 0, 1000)
    other_learning_rate: float = _setting(0.01, "muon: step size of all that is no filter, by AdamW", 0, 1000)
    momentum: float = _setting(0.0, "sgd, muon: share of the last update that is kept", 0, 0.9999)
    nesterov: bool = _setting(False, "sgd: look ahead along the momentum")
    weight_decay: float = _setting(0.0, "share of each weight lost per unit of learning rate", 0, 100)
    schedule: str = _setting("constant", "learning rate over time", choices=SCHEDULES)
    warmup: float = _setting(0.25, "one-cycle, trapezoid: share of the steps on the way up", 0, 1)
    cooldown: float = _setting(0.25, "trapezoid: share of the steps on the way down", 0, 1)
    decay: float = _setting(0.1, "step: what the learning rate is multiplied by", 0, 1)
    decay_every: int = _setting(30, "step: after how many epochs, each time", 1, 100_000)
    label_smoothing: float = _setting(0.0, "share of the target spread over all classes", 0, 0.9999)
    init: str = _setting("framework", "starting weights", choices=("framework", "xavier-uniform", "he-normal"))

    image_size: int = _setting(0, "pixels a side that the network sees; 0: the source's own", 0, 4096)
    start_size: int = _setting(0, "pixels a side in the first epoch, growing to image_size; 0: no growing", 0, 4096)
    fit: str = _setting("pad", "how an image becomes square", choices=("pad", "crop", "stretch"))
    normalize: bool = _setting(True, "subtract the training images' mean, divide by their deviation")
    shift: int = _setting(0, "augmentation: largest random translation, pixels of the network's input", 0, 512)
    shift_fill: str = _setting("zeros", "shift: what comes in at the edge", choices=("zeros", "reflect"))
    flip: bool = _setting(False, "augmentation: mirror left and right at random")
    alternating_flip: bool = _setting(False, "augmentation: mirror each image every other epoch instead")
    crop_scale: float = _setting(1.0, "augmentation: smallest share of the area that a random crop keeps", 0.01, 1)
    crop_ratio: float = _setting(
        1.0, "augmentation: largest width over height of a random crop, and height over width", 1, 10
    )
    brightness: float = _setting(0.0, "augmentation: largest relative change", 0, 10)
    contrast: float = _setting(0.0, "augmentation: largest relative change", 0, 10)
    saturation: float = _setting(0.0, "augmentation: largest relative change of the colours", 0, 10)
    randaugment: int = _setting(0, "augmentation: random operations on each image, by RandAugment", 0, 20)
    magnitude: int = _setting(9, "randaugment: how strong, 0 to 30", 0, 30)
    cutout: int = _setting(0, "augmentation: side of a random square made grey, pixels", 0, 512)
    mixup: float = _setting(0.0, "augmentation: blend two images; alpha of the Beta distribution", 0, 100)
    cutmix: float = _setting(0.0, "augmentation: paste a part of another image; alpha of the Beta distribution", 0, 100)

    precision: str = _setting(
        "float32",
        "auto: bfloat16 or float16 where the device has units for it, unless a trial in a longer run finds it slower",
        choices=("float32", "bfloat16", "float16", "auto"),
    )
    memory_format: str = _setting(
        "auto", "order of the numbers in memory; auto: what a short trial finds faster", choices=("auto", *FORMATS)
    )
    compile: str = _setting(
        "auto",
        "torch.compile's mode, tried by auto where a run is long enough; record: only recorded, as auto does on CUDA",
        choices=("auto", *COMPILE),
    )
    average: str = _setting(
        "none", "weights that are kept besides: their running mean, or lookahead", choices=("none", "ema", "lookahead")
    )
    average_decay: float = _setting(0.999, "average: share of the old average that stays, each time", 0, 0.999999)
    average_every: int = _setting(1, "average: updates of the network between two of the average", 1, 100_000)
    on_nan: str = _setting(
        "stop", "a loss that is no finite number: stop, or skip its update", choices=("stop", "skip")
    )
    save_seconds: float = _setting(60.0, "save inside an epoch too, after so many seconds; 0: do not", 0, 1e9)
    save_steps: int = _setting(0, "save inside an epoch too, after so many steps; 0: do not", 0, 2**31 - 1)

    limit: int = _setting(
        0, "most images to train on and to evaluate on, the same share of each class; 0: all", 0, 2**31 - 1
    )
    val_fraction: float = _setting(0.1, "share of the training images held out, the same of each class", 0, 0.9)
    eval_split: str = _setting("validation", "split measured after each epoch", choices=tuple(KEYS))
    seed: int = _setting(0, "starting weights, order of the images, dropout, augmentation", 0, 2**31 - 1)
    split_seed: int = _setting(0, "which images are held out", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        for name, kind in TYPES.items():
            value: Any = getattr(self, name)
            if kind is float and type(value) is int and abs(value) < 10**300:  # no larger one is within any bounds
                value = float(value)
                object.__setattr__(self, name, value)
            if type(value) is not kind:
                raise CnnlabError(f"{name}={_told(value)}: {_EXPECTED[kind]}")
            rule = SETTINGS[name].metadata
            if rule["choices"] and value not in rule["choices"]:
                raise CnnlabError(f"{name}={_told(value)}: choose one of {', '.join(rule['choices'])}")
            if kind is float and not math.isfinite(getattr(self, name)):
                raise CnnlabError(f"{name}={value!r}: must be a finite number")
            if rule["low"] is not None and not rule["low"] <= value <= rule["high"]:
                raise CnnlabError(f"{name}={_told(value)}: must lie between {rule['low']} and {rule['high']}")
            if isinstance(value, str) and len(value) > LONGEST:
                raise CnnlabError(f"{name}={_told(value)}: at most {LONGEST:,} characters")
        if self.eval_split == "validation" and self.val_fraction == 0:
            raise CnnlabError(
                "val_fraction=0.0 leaves nothing to evaluate on; hold some images out, or set eval_split=test for the "
                "test set after each epoch"
            )
        if self.optimizer == "muon" and self.learning_rate == 0:
            raise CnnlabError("learning_rate=0.0: muon needs one above 0")
        if self.alternating_flip and not self.flip:
            raise CnnlabError("alternating_flip=True needs flip; set flip=true, or alternating_flip=false")
        if self.average == "lookahead" and self.average_decay > 0.9:
            raise CnnlabError(
                f"average_decay={self.average_decay}: lookahead puts the network back onto its average, which would "
                "hardly move; set average_decay=0.5 and average_every=5, as its paper has it"
            )
        if self.schedule == "trapezoid" and self.warmup + self.cooldown > 1:
            raise CnnlabError(f"warmup={self.warmup} and cooldown={self.cooldown}: together they must be at most 1")
        if self.start_size > self.image_size > 0:
            raise CnnlabError(f"start_size={self.start_size} is larger than image_size={self.image_size}; choose less")
        if self.nesterov and self.momentum == 0:
            raise CnnlabError("nesterov=True needs momentum above 0; set momentum, or nesterov=false")

    @property
    def key(self) -> str:
        """How figures of the watched split are called: `val`, `test` or `seen`."""
        return KEYS[self.eval_split]

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, in the order of its fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe that `to_dict` gave. Raises CnnlabError for an unknown or missing key, or a bad value."""
        values = _renamed(values)
        for key in values:
            if key not in SETTINGS:
                raise unknown("setting", key, SETTINGS)
        missing = SETTINGS.keys() - values.keys() - _NEWER
        if missing:
            raise CnnlabError(f"it lacks {', '.join(sorted(missing))}")
        return cls(**values)

    def with_settings(self, settings: Sequence[str]) -> Recipe:
        """A copy changed by `key=value` texts; its name tells what was changed.

        Raises: CnnlabError for a text without `=`, an unknown key or a value that does not fit.
        """
        changes: dict[str, Any] = {}
        for text in settings:
            key, equals, value = text.partition("=")
            key = key.strip().replace("-", "_")
            if not equals:
                raise CnnlabError(f"setting {text!r} has no value; write key=value")
            if key == "channels_last":
                raise CnnlabError("channels_last is a memory format now; write memory_format=channels_last")
            if key not in SETTINGS:
                raise unknown("setting", key, SETTINGS)
            changes[key] = _parse(key, value.strip())
        return self.changed(**changes)

    def changed(self, **changes: Any) -> Recipe:
        """A copy with `changes`; those that differ are added to its name, so that a report cannot hide them."""
        for key in changes:
            if key not in SETTINGS:
                raise unknown("setting", key, SETTINGS)
        told = [f"{k}={v}" for k, v in changes.items() if k not in _UNTOLD and getattr(self, k) != v]
        name = changes.pop("name", self.name)
        return replace(self, **changes, name=", ".join([name, *told]))


def _told(value: object) -> str:
    """`value` as an error names it: a number of thousands of digits, or a list of lists of lists, in short."""
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
    str: "expected a text",
}
SETTINGS = {f.name: f for f in fields(Recipe)}
# A change of these makes no other recipe: they change no weight, or, the seed, are told on their own.
_UNTOLD = {"name", "seed", "save_seconds", "save_steps"}
# A run's recipe from before these were there trained as their defaults say.
_NEWER = {
    "limit", "other_learning_rate", "decay", "decay_every", "shift_fill", "alternating_flip", "crop_scale",
    "crop_ratio", "brightness", "contrast", "saturation", "randaugment", "magnitude", "cutout", "mixup", "cutmix",
    "precision", "memory_format", "compile", "average", "average_decay", "average_every", "cooldown", "start_size",
    "on_nan", "save_seconds", "save_steps",
}  # fmt: skip


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe from before the machine could choose: it trained in one layout, and not compiled."""
    if "memory_format" in values:
        return values
    layout = FORMATS[values.get("channels_last") is True]
    return {**{k: v for k, v in values.items() if k != "channels_last"}, "memory_format": layout, "compile": "off"}


TYPES: dict[str, type] = get_type_hints(Recipe)


def recipe_json(recipe: Recipe) -> str:
    """The recipe as the text of a JSON file."""
    return json.dumps(recipe.to_dict(), indent=2, ensure_ascii=False) + "\n"
