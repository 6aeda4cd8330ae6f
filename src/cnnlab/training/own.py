"""The caller's own network, images and augmentation: a run's folder does not hold them, so they are passed again."""

from __future__ import annotations

import shlex
from pathlib import Path

from cnnlab.data.own import MEMORY
from cnnlab.io.errors import CnnlabError
from cnnlab.models import MODELS
from cnnlab.models.own import is_own
from cnnlab.recipe import Recipe


def check_own(path: Path, recipe: Recipe, *, builder: str = "", augmented: str = "", **given: object) -> None:
    """Check that the caller's own network (`model=`), images (`data=`) and `augment=` fit the run at `path`.

    builder: where the run's network came from, if known. augmented: the name of its augmentation, if it was the
    caller's own. Raise CnnlabError if something that the run was trained with is missing, or something is given that
    it was not trained with.
    """
    names = {"model": recipe.model, "data": recipe.data, "augment": augmented or "the recipe's augmentation"}
    owned = {"model": _is_own(recipe.model), "data": recipe.data.startswith(MEMORY), "augment": bool(augmented)}
    for keyword, value in given.items():
        name, own = names[keyword], owned[keyword]
        if own and value is None:
            command = " or --model FILE.py:BUILDER" if keyword == "model" else ""
            command = f" or --model {shlex.quote(builder)}" if keyword == "model" and builder else command
            raise CnnlabError(f"{path} was trained with your own {name}: pass it again, as {keyword}=...{command}")
        if value is not None and not own:
            raise CnnlabError(f"{path} was trained with {name}, not with your own; leave out {keyword}")


def _is_own(model: str) -> bool:
    """Return whether a network is the caller's own: passed to a training, or added to MODELS in another process."""
    return is_own(model) or (":" not in model and model not in MODELS)


def resume_command(path: Path) -> str:
    """Return the command that resumes the run or the series in the folder `path`, if nothing must be passed again."""
    return f"cnnlab train --resume {shlex.quote(str(path))}"


def resume_call(path: Path, recipe: Recipe, builder: str = "", augment: str = "", on_nan: str = "") -> str:
    """Return how to resume: the command, or the call if a network, images or augmentation must be passed again.

    on_nan: the setting to change; empty for none.
    """
    own = ["model=..."] * _is_own(recipe.model) + ["data=..."] * recipe.data.startswith(MEMORY)
    own += ["augment=..."] * bool(augment)
    if not own or (own == ["model=..."] and ".py:" in builder):
        model, skip = f" --model {shlex.quote(builder)}" * bool(own), f" --on-nan {on_nan}" * bool(on_nan)
        return f"{resume_command(path)}{model}{skip}"
    own += [f"on_nan={on_nan!r}"] * bool(on_nan)
    return f"cnnlab.resume({', '.join([repr(str(path)), *own])})"
