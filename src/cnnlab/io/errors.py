"""Errors for users: one line that names the value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnlab.io.text import escape, truncate


class CnnlabError(Exception):
    """Bad input, or a bad state outside the program. The command prints it as one line and exits with 2.

    The text is escaped: whatever names, labels or damaged bytes it holds, it is one harmless line.
    """

    def __init__(self, text: str) -> None:
        super().__init__(escape(text))


class SourceMissing(CnnlabError):
    """The images of a source are not where its name says."""


class ReportedElsewhere(CnnlabError):
    """The error of another process of the same training, which prints it."""


class TrainingInterrupted(KeyboardInterrupt):
    """An interruption of training by Ctrl-C or a similar signal. The text says what is saved and how to continue.

    code: the command's exit code.
    """

    code = 130  # the shell's code for Ctrl-C

    def __init__(self, text: str = "") -> None:
        super().__init__(escape(text))


def reason(error: BaseException, most: int = 0) -> str:
    """Return the operating system's or a library's message, on one line, without the full stop.

    most: the limit in characters; 0: none. A longer message ends with its last whole sentence, or else after a word,
    with `...`.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    if most and len(text) > most:
        text = text[: most + 1]
        end = max(text.rfind(mark) for mark in (". ", "; ", "! ", "? "))
        text = text[: end + 1] if end > most // 4 else f"{text.rpartition(' ')[0] or text[:most]}..."
    return text if text.endswith("..") else text.rstrip(".;")


def out_of_memory(error: BaseException) -> bool:
    """Return whether the system or the device had no memory left."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


@contextmanager
def needs_extra(extra: str, *packages: str) -> Iterator[None]:
    """Raise CnnlabError with the remedy if an import in the block lacks one of `packages`, which `extra` installs."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        raise CnnlabError(f"{error.name} is not installed; pip install 'cnnlab[{extra}]'") from error


def expand(path: str | Path) -> Path:
    """Replace `~` and `~user` in `path`. Raise CnnlabError for an unknown user, a URL or an impossible name."""
    if address := re.match(r"(https?|ftp|s3|gs):/+", str(path), re.IGNORECASE):  # Path collapses two slashes into one
        rest = str(path)[address.end() :]
        raise CnnlabError(f"{address[1]}://{rest} is an address, not a file; download it, and give the file's name")
    if "\0" in str(path):
        raise CnnlabError(f"{path}: a file name cannot contain a zero byte; correct it")
    if long := next((part for part in Path(path).parts if len(part.encode(errors="replace")) > 255), ""):
        raise CnnlabError(f"{long[:40]}... is longer than a file's name can be; correct it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CnnlabError(f"{path}: {reason(error)}; give the full path") from error


def unknown(what: str, name: str, known: Iterable[str]) -> CnnlabError:
    """Return the error for an unknown `name`: it suggests similar ones, or else lists the known ones."""
    names = sorted(known)
    plain = {known.casefold(): known for known in names}
    near = [plain[text] for text in difflib.get_close_matches(name[:200].casefold(), plain, n=3, cutoff=0.5)]
    # lr -> learning_rate, bs -> batch_size
    near += [n for n in names if "".join(w[:1] for w in n.split("_")) == name and n not in near]
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:40])}{more}"
    return CnnlabError(f"unknown {what} {truncate(name)!r}; {hint}")
