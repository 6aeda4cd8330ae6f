"""Kaggle's official command line client (`pip install kaggle`), run as a program of its own: download and hand in.

It is given arguments, never a shell's line, and what it says is shown without the user's token.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from cnnlab.data.archives import ARCHIVES
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.lock import file_lock

# Files that one downloads by hand, where we know them.
_FILES = {"cifar-10": ("train.7z", "test.7z", "trainLabels.csv", "sampleSubmission.csv")}
_TOKENS = "https://www.kaggle.com/settings/api"
_UNFINISHED = ".kaggle-partial"  # the client's mark beside a file that it has begun
_PERCENT = re.compile(r"(\d{1,3})%\|")  # of the client's progress bar
_STOPPED = "User cancelled operation"  # it says so, and exits with 0

Report = Callable[[str, int, int], None]


def find_client() -> str | None:
    """The `kaggle` program: that on the PATH, else the one beside this Python; None without either."""
    return shutil.which("kaggle") or shutil.which("kaggle", path=str(Path(sys.executable).parent))


def has_token() -> bool:
    """Is there something the client may log in with? Whether it is valid, only Kaggle knows."""
    env = os.environ
    if env.get("KAGGLE_API_TOKEN") or (env.get("KAGGLE_USERNAME") and env.get("KAGGLE_KEY")):
        return True
    return any(path.is_file() and path.stat().st_size for path in _token_files())


def present(competition: str, folder: Path) -> list[Path]:
    """The competition's files in `folder`, if that is all one needs; else none.

    That is the zip NAME.zip, or the training and the test images, as folders or archives, and a CSV of labels.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    whole = [path for path in entries if path.name == f"{competition}.zip" and path.is_file()]
    if whole:
        return whole
    parts = [[p for p in entries if _images(p, part)] for part in ("train", "test")]
    tables = [path for path in entries if path.suffix.lower() == ".csv"]
    labels = [path for path in tables if "label" in path.stem.lower() or path.stem.lower() == "train"]
    return sorted({*parts[0], *parts[1], *tables}) if all((*parts, labels)) else []


def get(competition: str, folder: Path, *, report: Report = lambda *_: None) -> list[Path]:
    """The competition's files in `folder`: those that are there, else downloaded with the official client.

    The client writes into a hidden folder inside; only what is complete moves out, and replaces nothing. What an
    interrupted download left in there, the client continues next time. report: progress, as (what, done, total).

    Raises: CnnlabError that says what to do, or which files to fetch by hand where the client or a token is missing.
    """
    _check_name(competition)
    folder = folder.absolute()
    try:
        if found := present(competition, folder):
            report(f"{folder} has the files already", 1, 1)
            return found
        client = find_client()
        if client is None or not has_token():
            raise CnnlabError(_by_hand(competition, folder, client))
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / f".{competition}", report):
            # Another process may have done it while we waited.
            return present(competition, folder) or _download(client, competition, folder, report)
    except OSError as error:
        raise CnnlabError(f"cannot use {folder}: {reason(error)}; free some space or name another folder") from error


def check_ready(competition: str) -> None:
    """Could a submission be handed in to `competition`? Raises: CnnlabError for its name, without client or token."""
    _check_name(competition)
    client = find_client()
    if client is None or not has_token():
        raise CnnlabError(
            f"{_lacking(client)}; or leave --upload out and upload the file at {_page(competition)}/submit"
        )


def upload(competition: str, path: Path, message: str) -> str:
    """Hand in the submission `path`; the client's own answer, one line.

    Raises: CnnlabError where the file, the client or a token is missing, and where Kaggle refuses.
    """
    _check_name(competition)
    if not path.is_file() or not path.stat().st_size:
        raise CnnlabError(f"{path} is no file with a submission; write one with cnnlab kaggle submit first")
    client = find_client()
    if client is None or not has_token():
        raise CnnlabError(f"{_lacking(client)}; or upload {path.absolute()} at {_page(competition)}/submit")
    # One line without control characters; as --message=..., since a text may begin with a dash.
    note = " ".join("".join(c if c.isprintable() else " " for c in message).split()) or path.stem
    said = _run(client, ["submit", "-c", competition, "-f", str(path.absolute()), f"--message={note}"], competition)
    lines = [line for line in said if not line.startswith("Warning:")]
    return lines[-1] if lines else f"{path} was handed in to {competition}"


def _download(client: str, competition: str, folder: Path, report: Report) -> list[Path]:
    # Inside the folder: a mounted one often allows nothing beside it, and renaming stays on one disk.
    parts = folder / f".{competition}.download"
    parts.mkdir(exist_ok=True)
    what = f"downloading {competition}"

    def progress(percent: int) -> None:
        report(what, percent, 100)

    try:
        report(what, 0, 100)
        _run(client, ["download", "-c", competition, "-p", str(parts)], competition, progress)
        moved = []
        for path in sorted(parts.iterdir()):
            if path.with_name(path.name + _UNFINISHED).exists() or path.name.endswith(_UNFINISHED):
                raise CnnlabError(f"the download of {competition} is not complete; run again to go on with it")
            if path.suffix == ".zip" and not zipfile.is_zipfile(path):
                path.unlink()
                raise CnnlabError(f"the download of {path.name} was damaged, and is removed; run again")
        for path in sorted(parts.iterdir()):
            moved.append(_move(path, folder / path.name))
        if not moved:
            raise CnnlabError(f"the kaggle client brought no file; {_by_hand(competition, folder, client)}")
        return moved
    finally:
        with suppress(OSError):  # not empty: to be continued
            parts.rmdir()


def _move(path: Path, target: Path) -> Path:
    """Rename `path`, unless there is a `target`: that one stays."""
    if target.exists():
        path.unlink()
    else:
        path.rename(target)
    return target


def _run(
    client: str, arguments: list[str], competition: str, progress: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Run `kaggle competitions ARGUMENTS`; the lines that it says. Raises CnnlabError where it fails."""
    # Unbuffered, so that what it prints and its errors come in their order.
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        process = subprocess.Popen(  # noqa: S603 - a list of arguments, with a checked name
            [client, "competitions", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
        )  # fmt: skip
    except OSError as error:
        raise CnnlabError(f"cannot run {client}: {reason(error)}; install it again: pip install kaggle") from error
    lines: list[str] = []
    assert process.stdout is not None
    with process.stdout:
        try:
            for text in _said(process.stdout):
                if match := _PERCENT.search(text):
                    progress(min(int(match[1]), 100))
                elif text:
                    lines = [*lines[-99:], text]
            code = process.wait()
        finally:  # Ctrl-C and whatever else: the client does not outlive us
            _stop(process)
    lines = [_without_secrets(line) for line in lines]
    failed = any(line.startswith(("Could not submit", "Could not find")) for line in lines)  # old ones exit with 0
    if code or failed or _STOPPED in lines:
        raise CnnlabError(_explain(competition, code, lines))
    return lines


def _said(stream: IO[bytes]) -> Iterator[str]:
    """What comes out of `stream`, line by line; a progress bar ends its lines with a carriage return."""
    rest = b""
    while piece := os.read(stream.fileno(), 1 << 16):
        *whole, rest = re.split(rb"[\r\n]", rest + piece)
        yield from (_clean(line) for line in whole)
        rest = rest[-(1 << 16) :]
    yield _clean(rest)


def _clean(line: bytes) -> str:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.decode(errors="replace"))
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _explain(competition: str, code: int, lines: list[str]) -> str:
    """The client's failure in a line: what is wrong and what to do."""
    page, text = _page(competition), "\n".join(lines)
    if code < 0 or _STOPPED in lines:
        return "the kaggle client was stopped; run again (a download goes on where it was)"
    if re.search(r"401\b.*(Client Error|Unauthor)|Unauthorized|Authentication required|Invalid credentials", text):
        return f"Kaggle does not know your token (401); make a new one at {_TOKENS}"
    if re.search(r"must accept|accept its rules|\b403\b.*(Client Error|Forbidden)", text):
        return f"Kaggle refuses (403): log in, open {page}/rules, accept the rules, and run again"
    if re.search(r"\b404\b.*(Client Error|Not Found)|Could not find competition", text):
        return f"Kaggle has no competition {competition!r} (404), or it is closed; look at {page} for the name"
    if re.search(r"Max retries exceeded|ConnectionError|NewConnection|NameResolution|ProxyError|timed out", text):
        return "the kaggle client cannot reach Kaggle; check the network and run again"
    # From "If this is unexpected" on, the client speaks of itself.
    own = [line for line in re.split(r"(?m)^If this is unexpected", text)[0].splitlines() if line]
    return f"the kaggle client failed: {own[-1][:300] if own else f'it said nothing (exit code {code})'}; see {page}"


def _by_hand(competition: str, folder: Path, client: str | None) -> str:
    there = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()  # train.7z, or unpacked
    files = [name for name in _FILES.get(competition, ()) if Path(name).stem not in there]
    what = f"{', '.join(files)} (or all as {competition}.zip)" if files else f"{competition}.zip (Download All)"
    return f"download {what} from {_page(competition)}/data into {folder}; or, to let me do it, {_lacking(client)}"


def _lacking(client: str | None) -> str:
    token = f"make a token at {_TOKENS} and save it as {Path.home() / '.kaggle' / 'access_token'}"
    return token if client else f"pip install kaggle{'' if has_token() else ' and ' + token}"


def _page(competition: str) -> str:
    return f"https://www.kaggle.com/c/{competition}"


def _check_name(competition: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,99}", competition):
        raise CnnlabError(f"{competition!r} is no competition's name; take it from its address: kaggle.com/c/NAME")


def _images(path: Path, part: str) -> bool:
    return (path.name == part and path.is_dir()) or path.name in [part + ending for ending in ARCHIVES]


def _token_files() -> list[Path]:
    """Where the client looks for tokens and keys."""
    home = Path.home() / ".kaggle"
    shared = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    folders = [Path(os.environ["KAGGLE_CONFIG_DIR"])] if os.environ.get("KAGGLE_CONFIG_DIR") else [home, shared]
    named = [home / name for name in ("access_token", "access_token.txt", "credentials.json")]
    return named + [folder / "kaggle.json" for folder in folders]


def _without_secrets(text: str) -> str:
    """`text` without what the user logs in with, wherever that is kept."""
    secrets = {os.environ.get(name, "") for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY")}
    for path in _token_files():
        with suppress(OSError):
            content = path.read_text(errors="replace")
            secrets |= {content.strip(), *re.findall(r'"(?:key|\w*token)"\s*:\s*"([^"]+)"', content)}
    for secret in secrets:
        if len(secret) > 4:
            text = text.replace(secret, "***")
    return text
