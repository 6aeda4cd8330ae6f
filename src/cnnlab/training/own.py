"""Networks and images of the caller's own, which are not in a run's folder: passed again to use the run."""

from __future__ import annotations

import shlex
from pathlib import Path

from cnnlab.data.own import MEMORY
from cnnlab.io.errors import CnnlabError
from cnnlab.models import MODELS
from cnnlab.models.own import is_own
from cnnlab.recipe import Recipe


def check_own(path: Path, recipe: Recipe, *, builder: str = "", **given: object) -> None:
    """Check what is given in place of the recipe's network (`model=`) and images (`data=`).

    builder: where the network came from, if that is known. Raise CnnlabError unless each is given exactly if the run at
    `path` was trained with the caller's own.
    """
    for keyword, value in given.items():
        name = recipe.model if keyword == "model" else recipe.data
        own = _is_own(name) if keyword == "model" else name.startswith(MEMORY)
        if own and value is None:
            command = " or --model FILE.py:BUILDER" if keyword == "model" else ""
            command = f" or --model {builder}" if keyword == "model" and builder else command
            raise CnnlabError(f"{path} was trained with your own {name}: pass it again, as {keyword}=...{command}")
        if value is not None and not own:
            raise CnnlabError(f"{path} was trained with {name}, not with your own; leave out {keyword}")


def _is_own(model: str) -> bool:
    """Return whether a network is the caller's own, passed to a training or added to MODELS in another process."""
    return is_own(model) or (":" not in model and model not in MODELS)


def resume_call(path: Path, recipe: Recipe, builder: str = "") -> str:
    """Return how to resume: the command, or the call if a network or images must be passed again."""
    own = ["model=..."] * _is_own(recipe.model) + ["data=..."] * recipe.data.startswith(MEMORY)
    if not own or (own == ["model=..."] and ".py:" in builder):
        return f"cnnlab train --resume {shlex.quote(str(path))}{f' --model {shlex.quote(builder)}' * bool(own)}"
    return f"cnnlab.resume({', '.join([repr(str(path)), *own])})"
