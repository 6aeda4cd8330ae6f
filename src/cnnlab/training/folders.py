"""Names and creation of new folders under runs/."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from cnnlab.data import HUB, PATHS
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.text import truncate
from cnnlab.recipe import Recipe
from cnnlab.training.own import resume_command
from cnnlab.training.series import is_series


def make_folder(path: Path) -> Path:
    """Create the new folder `path` and its parents. Raise CnnlabError if it exists or cannot be created."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError as error:
        where = path if path.exists() else path.parent
        if (path / "reproduction.json").exists():
            remedy = f"choose another --name, or continue it: cnnlab reproduce --resume {shlex.quote(str(path))}"
        elif (path / "run.json").exists() or is_series(path):
            remedy = f"choose another --name, or continue it: {resume_command(path)}"
        elif where.is_dir():
            remedy = "choose another --name"
        else:
            remedy = "it is a file; name another folder with --runs-dir"
        raise CnnlabError(f"{where} exists; {remedy}") from error
    except OSError as error:
        raise CnnlabError(f"cannot create {path}: {reason(error)}; name another folder with --runs-dir") from error
    return path


def new_folder(runs_dir: Path, name: str | None, recipe: Recipe) -> Path:
    """Create the folder of a new run: `runs_dir`/`name`. Default name: data, network and a free number.

    Raise CnnlabError if the name is taken or invalid.
    """
    return named_folder(runs_dir, name, _stem(recipe))


def free_name(runs_dir: Path, recipe: Recipe, taken: Container[str] = ()) -> str:
    """Return the name that `new_folder` would choose now, unless it is among `taken`: then the next free one."""
    names = (f"{_portable(_stem(recipe))}-{number:03d}" for number in itertools.count(1))
    return next(name for name in names if name not in taken and not (runs_dir / name).exists())


def _stem(recipe: Recipe) -> str:
    kind, _, path = recipe.data.partition(":")
    source = f"{kind}-{Path(path).name.removesuffix('.csv')}" if f"{kind}:" in (*PATHS, HUB) else recipe.data
    return f"{source}-{recipe.model}"


def _portable(stem: str) -> str:
    return re.sub(r"\W+", "-", stem).strip("-")[:80]


def check_name(name: str) -> None:
    """Raise CnnlabError if `name` is not a portable file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith("."):
        raise CnnlabError(
            f"run name {truncate(name)!r}: use letters, digits, '.', '_' and '-', at most 100, a letter or digit first "
            "and no '.' last"
        )
    if re.fullmatch(r"con|prn|aux|nul|(com|lpt)[0-9]", name.partition(".")[0].lower()):
        raise CnnlabError(f"run name {name!r} is reserved for a device on Windows; choose another")


def check_free(runs_dir: Path, name: str | None) -> None:
    """Raise CnnlabError if `name` is invalid or taken. Call it before minutes of reading data, not after."""
    if name is not None:
        check_name(name)
        if (runs_dir / name).exists():
            make_folder(runs_dir / name)


def named_folder(runs_dir: Path, name: str | None, stem: str) -> Path:
    """Create the new folder `runs_dir`/`name`. Default name: `stem` and a free number. Raise CnnlabError."""
    if name is not None:
        check_name(name)
        return make_folder(runs_dir / name)
    number = 1
    while True:
        path = runs_dir / f"{_portable(stem)}-{number:03d}"
        try:
            return make_folder(path)
        except CnnlabError:  # taken, perhaps a moment ago by another process
            if not path.exists():
                raise
        number += 1


@contextmanager
def removed_if_empty(path: Path) -> Iterator[Path]:
    """Yield the new folder `path`, and remove it at the end if nothing was written into it."""
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()  # fails if there is anything inside


def result_folder(
    stem: str, out: str | Path | None = None, runs_dir: str | Path = "runs"
) -> AbstractContextManager[Path]:
    """Return a context manager for the folder of `stem`.json and `stem`.png: `out`, or a new one in `runs_dir`.

    A new folder is removed if it stays empty. Raise CnnlabError if it cannot be created or already has a result.
    """
    if out is None:
        return removed_if_empty(named_folder(Path(runs_dir), None, stem))
    path = expand(out)
    for name in (f"{stem}.json", f"{stem}.png"):
        if (path / name).exists():
            raise CnnlabError(f"{path / name} exists; name another folder with --out")
    if path.is_dir():
        return nullcontext(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise CnnlabError(f"cannot create {path}: {reason(error)}; name another folder with --out") from error
    return removed_if_empty(path)
