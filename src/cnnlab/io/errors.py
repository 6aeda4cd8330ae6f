"""The errors that cnnlab means a person to read: one line that names the value and says the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from cnnlab.io.text import escape, truncate


class CnnlabError(Exception):
    """Bad input or a bad state outside the program. The command prints it as one line and exits with 2.

    Whatever names, labels or damaged bytes the text holds, it is one line that does no harm to a terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__(escape(text))


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal like it, stopped a training. The text says what is saved and how to go on.

    code: what the command exits with.
    """

    code = 130  # as a shell tells Ctrl-C

    def __init__(self, text: str = "") -> None:
        super().__init__(escape(text))


def reason(error: BaseException) -> str:
    """The operating system's or a library's own words for `error`, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Did the system or the device have no memory left?"""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def expand(path: str | Path) -> Path:
    """`path` with `~` and `~user` replaced by that folder. Raises: CnnlabError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CnnlabError(f"{path}: {reason(error)}; write the folder out in full") from error


def unknown(what: str, name: str, known: Iterable[str]) -> CnnlabError:
    """An error for a `name` that is none of `known`: it names the near ones, or all where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.5)
    # lr -> learning_rate, bs -> batch_size
    near += [n for n in names if "".join(w[:1] for w in n.split("_")) == name and n not in near]
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:40])}{more}"
    return CnnlabError(f"unknown {what} {truncate(name)!r}; {hint}")
