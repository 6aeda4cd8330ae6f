"""Run Kaggle's official command line client (`pip install kaggle`): download a competition, upload a submission.

It is run as a program with a list of arguments, never through a shell, and its output is shown without the user's
token.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cnnlab.data.archives import ARCHIVES
from cnnlab.data.imageset import Report, no_report
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.lock import file_lock

_FILES = {"cifar-10": ("train.7z", "test.7z", "trainLabels.csv", "sampleSubmission.csv")}  # for a download by hand
_TOKENS = "https://www.kaggle.com/settings/api"
_UNFINISHED = ".kaggle-partial"  # extension of the marker file that the client keeps beside an unfinished download
_STOPPED = "User cancelled operation"  # printed after Ctrl-C, with exit code 0
# What the client prints, and what it means: {page} and {competition} are filled in.
_FAILURES = {
    r"401\b.*(Client Error|Unauthor)|Unauthorized|Authentication required|Invalid credentials": (
        f"Kaggle does not accept your token (401); create a new one at {_TOKENS}"
    ),
    r"must accept|accept its rules|\b403\b.*(Client Error|Forbidden)": (
        "Kaggle refuses (403): log in, open {page}/rules, accept the rules, and run again"
    ),
    r"\b404\b.*(Client Error|Not Found)|Could not find competition": (
        "Kaggle has no competition {competition!r} (404), or it is closed; look for its name at {page}"
    ),
    r"Max retries exceeded|ConnectionError|NewConnection|NameResolution|ProxyError|timed out": (
        "the kaggle client cannot reach Kaggle; check the network and run again"
    ),
}


def find_client() -> str | None:
    """Return the path of the `kaggle` program, on the PATH or else beside this Python; None if there is none."""
    return shutil.which("kaggle") or shutil.which("kaggle", path=str(Path(sys.executable).parent))


def has_token() -> bool:
    """Return whether the client finds a token, valid or not."""
    env = os.environ
    if env.get("KAGGLE_API_TOKEN") or (env.get("KAGGLE_USERNAME") and env.get("KAGGLE_KEY")):
        return True
    return any(path.is_file() and path.stat().st_size for path in _token_files())


def present(competition: str, folder: Path) -> list[Path]:
    """Return the competition's files in `folder` if they are complete, else an empty list.

    They are complete if there is NAME.zip, or training images, test images (folders or archives) and a CSV of labels.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    whole = [path for path in entries if path.name == f"{competition}.zip" and path.is_file()]
    if whole:
        return whole
    train, test = ([path for path in entries if _holds_images(path, part)] for part in ("train", "test"))
    tables = [path for path in entries if path.suffix.lower() == ".csv"]
    labels = [path for path in tables if "label" in path.stem.lower() or path.stem.lower() == "train"]
    return sorted({*train, *test, *tables}) if train and test and labels else []


def get(competition: str, folder: Path, *, report: Report = no_report) -> list[Path]:
    """Return the competition's files in `folder`; download them if they are missing.

    The client downloads into a hidden subfolder. Only complete files are moved out, and they replace nothing. The next
    call continues an interrupted download.

    Raise CnnlabError with the remedy; without the client or a token, it lists the files to download by hand.
    """
    _check_name(competition)
    folder = folder.absolute()
    try:
        if files := present(competition, folder):
            report(f"{folder} has the files already", 1, 1)
            return files
        client = _ready(lambda lacking: f"{_by_hand(competition, folder)}; or, for a download by cnnlab, {lacking}")
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / f".{competition}", report):
            # Another process may have downloaded them in the meantime.
            return present(competition, folder) or _download(client, competition, folder, report)
    except OSError as error:
        raise CnnlabError(f"cannot use {folder}: {reason(error)}; free some space or name another folder") from error


def check_ready(competition: str) -> str:
    """Return the client's path. Raise CnnlabError for an invalid name, or if the client or a token is missing."""
    _check_name(competition)
    return _ready(lambda lacking: f"{lacking}; or upload the submission by hand at {_page(competition)}/submit")


def upload(competition: str, path: Path, message: str) -> str:
    """Upload the submission `path`. Return the client's answer, one line.

    Raise CnnlabError if the file, the client or a token is missing, or if Kaggle refuses.
    """
    client = check_ready(competition)
    if not path.is_file() or not path.stat().st_size:
        raise CnnlabError(f"{path} is not a submission; write one with cnnlab kaggle submit")
    # One line, and as --message=..., since it may start with a dash.
    note = " ".join("".join(c if c.isprintable() else " " for c in message).split()) or path.stem
    output = _run(client, ["submit", "-c", competition, "-f", str(path.absolute()), f"--message={note}"], competition)
    lines = [line for line in output if not line.startswith("Warning:")]
    return lines[-1] if lines else f"{path} was submitted to {competition}"


def _ready(message: Callable[[str], str]) -> str:
    """Return the client's path. Raise CnnlabError with `message(remedy)` if the client or a token is missing."""
    client = find_client()
    lacking = [] if client else ["pip install kaggle"]
    if not has_token():
        lacking.append(f"create a token at {_TOKENS} and save it as {Path.home() / '.kaggle' / 'access_token'}")
    if client is None or lacking:
        raise CnnlabError(message(" and ".join(lacking)))
    return client


def _download(client: str, competition: str, folder: Path, report: Report) -> list[Path]:
    # Inside the folder: it may be mounted, and renaming must stay on one disk.
    parts = folder / f".{competition}.download"
    parts.mkdir(exist_ok=True)
    try:
        report(f"downloading {competition}", 0, 100)
        _run(
            client, ["download", "-c", competition, "-p", str(parts)], competition,
            lambda percent: report(f"downloading {competition}", percent, 100),
        )  # fmt: skip
        paths = sorted(parts.iterdir())
        if any(path.name.endswith(_UNFINISHED) for path in paths):
            raise CnnlabError(f"the download of {competition} is incomplete; run again to continue it")
        for path in paths:
            if path.suffix == ".zip" and not zipfile.is_zipfile(path):
                path.unlink()
                raise CnnlabError(f"the download of {path.name} was damaged and has been removed; run again")
        if not paths:
            raise CnnlabError(f"the kaggle client downloaded no file; {_by_hand(competition, folder)}")
        for path in paths:
            if (folder / path.name).exists():
                path.unlink()
            else:
                path.rename(folder / path.name)
        return [folder / path.name for path in paths]
    finally:
        with suppress(OSError):  # not empty: the next call continues the download
            parts.rmdir()


def _run(
    client: str, arguments: list[str], competition: str, progress: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Run `kaggle competitions ARGUMENTS` and return its last lines. Raise CnnlabError if it fails."""
    # Unbuffered: stdout and stderr share a pipe, and their order matters.
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        process = subprocess.Popen(  # noqa: S603 - a list of arguments, with a checked name
            [client, "competitions", *arguments], env=env, encoding="utf-8", errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise CnnlabError(f"cannot run {client}: {reason(error)}; install it again: pip install kaggle") from error
    lines: list[str] = []
    assert process.stdout is not None
    with process.stdout:
        try:
            for line in process.stdout:  # a progress bar's carriage returns end a line, too
                text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip()
                if match := re.search(r"(\d{1,3})%\|", text):
                    progress(min(int(match[1]), 100))
                elif text:
                    lines = [*lines[-99:], text]
            code = process.wait()
        finally:  # the client must not outlive this process after Ctrl-C or an error
            _stop(process)
    lines = [_without_secrets(line) for line in lines]
    failed = any(line.startswith(("Could not submit", "Could not find")) for line in lines)  # with exit code 0
    if code or failed or _STOPPED in lines:
        raise CnnlabError(_explain(competition, code, lines))
    return lines


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _explain(competition: str, code: int, lines: list[str]) -> str:
    """Return the client's failure in one line, with the remedy."""
    page, text = _page(competition), "\n".join(lines)
    if code < 0 or _STOPPED in lines:
        return "the kaggle client was stopped; run again (a download continues where it stopped)"
    for pattern, meaning in _FAILURES.items():
        if re.search(pattern, text):
            return meaning.format(page=page, competition=competition)
    # From "If this is unexpected" on, the client prints advice on debugging.
    own = [line for line in re.split(r"(?m)^If this is unexpected", text)[0].splitlines() if line]
    return f"the kaggle client failed: {own[-1][:300] if own else f'no output (exit code {code})'}; see {page}"


def _by_hand(competition: str, folder: Path) -> str:
    there = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()  # train.7z, or unpacked
    files = [name for name in _FILES.get(competition, ()) if Path(name).stem not in there]
    what = f"{', '.join(files)} (or all as {competition}.zip)" if files else f"{competition}.zip (Download All)"
    return f"download {what} from {_page(competition)}/data into {folder}"


def _page(competition: str) -> str:
    return f"https://www.kaggle.com/c/{competition}"


def _check_name(competition: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,99}", competition):
        raise CnnlabError(f"{competition!r} is not a competition's name; take it from its URL: kaggle.com/c/NAME")


def _holds_images(path: Path, part: str) -> bool:
    return (path.name == part and path.is_dir()) or path.name in [part + ending for ending in ARCHIVES]


def _token_files() -> list[Path]:
    """Return the paths where the client looks for tokens and keys."""
    home = Path.home() / ".kaggle"
    shared = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    folders = [Path(os.environ["KAGGLE_CONFIG_DIR"])] if os.environ.get("KAGGLE_CONFIG_DIR") else [home, shared]
    named = [home / name for name in ("access_token", "access_token.txt", "credentials.json")]
    return named + [folder / "kaggle.json" for folder in folders]


def _without_secrets(text: str) -> str:
    secrets = {os.environ.get(name, "") for name in ("KAGGLE_API_TOKEN", "KAGGLE_KEY")}
    for path in _token_files():
        with suppress(OSError):
            content = path.read_text(errors="replace")
            secrets |= {content.strip(), *re.findall(r'"(?:key|\w*token)"\s*:\s*"([^"]+)"', content)}
    for secret in secrets:
        if len(secret) > 4:
            text = text.replace(secret, "***")
    return text
