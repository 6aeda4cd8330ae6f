"""Kaggle's client, replaced by a small program that logs its calls and fails in the ways the real one does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from cnnlab.competition import client
from cnnlab.competition.client import check_ready, find_client, get, has_token, present, upload
from cnnlab.io.errors import CnnlabError

NAME = "cifar-10"
PYTHON = sys.executable
SECRET = "KGAT_0123456789abcdef"

FAKE = """#!{python}
import json, os, sys, time, zipfile
from pathlib import Path
log = Path({log!r})
with log.open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
args = sys.argv[1:]
def option(name):
    return args[args.index(name) + 1]
"""

# What the client does: like the real ones, the current 2.x and the older 1.x.
DOWNLOAD = """
folder = Path(option("-p"))
assert folder.is_dir()
print("Downloading cifar-10.zip to", folder)
mark, target = folder / "cifar-10.zip.kaggle-partial", folder / "cifar-10.zip"
before = target.stat().st_size if target.exists() else 0
if before:
    print(f"Resuming from {before} bytes...")
mark.write_text("{}")
for percent in (0, 30, 100):
    sys.stderr.write(f"\\r{percent:3d}%|###   | {percent}.0M/100M [00:01<00:02, 3.0MB/s]")
with zipfile.ZipFile(target, "w") as archive:
    archive.writestr("train.7z", b"x" * 1000)
mark.unlink()
print()
"""
HALF = """
folder = Path(option("-p"))
(folder / "cifar-10.zip.kaggle-partial").write_text("{}")
(folder / "cifar-10.zip").write_bytes(b"PK half")
"""
SUBMITTED = """
sys.stderr.write("\\r100%|####| 1.0k/1.0k [00:01<00:00]\\n")
print("Warning: Looks like you're using an outdated API Version, please consider updating")
print("Submission ref: 123\\n94 submissions remaining today.")
print("Successfully submitted to CIFAR-10 - Object Recognition in Images", end="")
"""


class Kaggle:
    """The fake client. set_program: sets its program. calls: the arguments of each call so far."""

    def __init__(self, folder: Path) -> None:
        self.path, self.log = folder / "kaggle", folder / "log"
        self.log.touch()
        self.set_program("")

    def set_program(self, program: str) -> None:
        self.path.write_text(FAKE.format(python=PYTHON, log=str(self.log)) + program)
        self.path.chmod(0o755)

    def set_output(self, text: str, code: int = 1, stream: str = "stderr") -> None:
        self.set_program(f"print({text!r}, file=sys.{stream}); sys.exit({code})")

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without tokens; no client on the PATH nor beside Python."""
    for name in list(os.environ):
        if name.startswith("KAGGLE_") or name == "XDG_CONFIG_HOME":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Kaggle:
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    folder = tmp_path / "some bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return Kaggle(folder)


def visible_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []


def refusal(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(CnnlabError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    assert SECRET not in text
    return text


def write_submission(folder: Path) -> Path:
    path = folder / "my submission.csv"
    path.write_text("id,label\n1,cat\n")
    return path


# Where things are


def test_finds_the_client(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_client() == str(kaggle.path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(kaggle.path.parent / "python"))
    assert find_client() == str(kaggle.path)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert find_client() is None


def test_tokens_are_found_in_files_and_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not has_token()
    files = ["access_token", "access_token.txt", "credentials.json", "kaggle.json"]
    for path in [home / ".kaggle" / name for name in files] + [home / ".config" / "kaggle" / "kaggle.json"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert not has_token()
        path.write_text("x")
        assert has_token()
        path.unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "kaggle.json").write_text("{}")
    assert not has_token()
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(other))
    assert has_token()
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    assert not has_token()
    monkeypatch.setenv("KAGGLE_KEY", "k")
    assert has_token()
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "t")
    assert has_token()


@pytest.mark.parametrize(
    ("names", "enough"),
    [
        (["cifar-10.zip"], True),
        (["other.zip"], False),
        (["train.7z", "test.7z", "trainLabels.csv"], True),
        (["train/", "test.zip", "train_labels.csv", "sampleSubmission.csv"], True),
        (["train.7z", "test/", "train.csv"], True),
        (["train.tar.gz", "test/", "train.csv"], False),  # .tar.gz is not supported
        (["train.7z", "test.7z"], False),
        (["train.7z", "trainLabels.csv"], False),
        (["train.7z", "test.7z", "sampleSubmission.csv"], False),
        (["train.csv", "test.csv"], False),
        (["cifar-10.zip/"], False),
        ([], False),
    ],
)
def test_existing_files_are_not_downloaded_again(tmp_path: Path, names: list[str], enough: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).write_bytes(b"x")
    paths = sorted(folder / name.rstrip("/") for name in names)
    assert present(NAME, folder) == (paths if enough else [])
    if enough:
        assert get(NAME, folder) == paths
    else:
        assert "pip install kaggle" in refusal(get, NAME, folder)
    assert visible_names(folder) == sorted(name.rstrip("/") for name in names)


# By hand


def test_the_error_explains_how_to_download_by_hand(tmp_path: Path, home: Path) -> None:
    text = refusal(get, NAME, Path("data"))
    for part in (
        "train.7z, test.7z, trainLabels.csv, sampleSubmission.csv", "cifar-10.zip",
        "https://www.kaggle.com/c/cifar-10/data", str(tmp_path / "data"), "pip install kaggle", "token",
        str(home / ".kaggle" / "access_token"),
    ):  # fmt: skip
        assert part in text
    assert not (tmp_path / "data").exists()
    assert "dogs.zip" in refusal(get, "dogs", Path("data"))


def test_the_error_names_the_missing_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "trainLabels.csv").touch()
    assert re.search(r"(?<!,) test\.7z, sampleSubmission\.csv", refusal(get, NAME, tmp_path))


def test_a_missing_client_or_token_is_named(kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ready(NAME)
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    for text in (
        refusal(get, NAME, tmp_path / "data"), refusal(upload, NAME, write_submission(tmp_path), "m"),
        refusal(check_ready, NAME),
    ):  # fmt: skip
        assert "settings/api" in text
        assert "pip" not in text
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    kaggle.path.unlink()
    for text in (refusal(get, NAME, tmp_path / "data"), refusal(upload, NAME, write_submission(tmp_path), "m")):
        assert "pip install kaggle" in text
        assert "settings/api" not in text
    assert kaggle.calls == []


# With the client


def test_a_download_is_kept_and_not_repeated(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.set_program(DOWNLOAD)
    folder, reports = tmp_path / "a folder; rm -rf $HOME" / "new", []
    found = get(NAME, folder, report=lambda *a: reports.append(a))
    assert found == [folder / "cifar-10.zip"]
    assert zipfile.is_zipfile(found[0])
    assert kaggle.calls == [["competitions", "download", "-c", NAME, "-p", str(folder / ".cifar-10.download")]]
    assert reports == [("downloading cifar-10", n, 100) for n in (0, 0, 30, 100)]
    assert visible_names(folder) == ["cifar-10.zip"]
    assert not (folder / ".cifar-10.download").exists()
    assert get(NAME, folder) == found
    assert len(kaggle.calls) == 1


def test_a_download_replaces_no_file(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.set_program("for n in ('trainLabels.csv', 'test.7z'): (Path(option('-p')) / n).write_text('theirs')")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "trainLabels.csv").write_text("mine")
    assert get(NAME, folder) == [folder / "test.7z", folder / "trainLabels.csv"]
    assert {n: (folder / n).read_text() for n in visible_names(folder)} == {
        "test.7z": "theirs",
        "trainLabels.csv": "mine",
    }


def test_failures_are_explained_in_one_line(kaggle: Kaggle, tmp_path: Path) -> None:
    for output, expected in (
        ("403 Client Error: Forbidden for url: https://api.kaggle.com/v1/x", "https://www.kaggle.com/c/cifar-10/rules"),
        ("403 - Forbidden - You must accept this competition's rules before you'll be able to", "cifar-10/rules"),
        ("401 - Unauthorized - Unauthenticated", "settings/api"),
        ("Authentication required to call the Kaggle API.\n\n  Option B: API token file\n    Save the token", "401"),
        ("404 Client Error: Not Found for url: https://api.kaggle.com/x", "'cifar-10'"),
        ("Could not find competition - please verify that you entered the correct competition ID", "404"),
        ("HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded with url: /v1/x", "network"),
        ("Downloading 403 404 401 files\nthe last line", "the last line"),
        ("KeyError: 'x'\n\nIf this is unexpected, you can re-run with --debug\ntraceback. If you think", "KeyError"),
        ("", "exit code 1"),
        ("x" * 5000, "xxx;"),
    ):
        text = client._explain(NAME, 1, output.splitlines())
        assert expected in text
        assert len(text) < 500
    folder = tmp_path / "data"
    for stream in ("stderr", "stdout"):
        kaggle.set_output(f"something with {SECRET} in it\x1b[31m!", stream=stream)
        assert "something with *** in it!" in refusal(get, NAME, folder)
    assert visible_names(folder) == []


def test_secrets_from_token_files_are_not_shown(kaggle: Kaggle, tmp_path: Path, home: Path) -> None:
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "kaggle.json").write_text('{"username": "me", "key": "0a1b2c3d4e"}')
    (home / ".kaggle" / "access_token").write_text("KGAT_other\n")
    kaggle.set_output("me, 0a1b2c3d4e and KGAT_other")
    assert "me, *** and ***" in refusal(get, NAME, tmp_path / "data")


def test_an_incomplete_download_is_hidden_and_continued(kaggle: Kaggle, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    endings = {
        "os.kill(os.getpid(), 9)": "stopped",
        "print('User cancelled operation')": "stopped",  # the client exits with 0 on Ctrl-C
        "pass": "incomplete",
        "print('the disk is full', file=sys.stderr); sys.exit(1)": "the disk is full",
    }
    for ending, wanted in endings.items():
        kaggle.set_program(HALF + ending)
        assert wanted in refusal(get, NAME, folder)
        assert visible_names(folder) == []
        assert present(NAME, folder) == []
    kaggle.set_program(DOWNLOAD)  # continues the partial download
    assert get(NAME, folder) == [folder / "cifar-10.zip"]
    assert visible_names(folder) == ["cifar-10.zip"]


def test_a_damaged_zip_and_a_missing_file_are_errors(kaggle: Kaggle, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    kaggle.set_program("(Path(option('-p')) / 'cifar-10.zip').write_text('<html>sorry</html>')")
    assert "damaged" in refusal(get, NAME, folder)
    assert visible_names(folder) == []
    kaggle.set_program("")
    assert re.search(r"no file.*train\.7z", refusal(get, NAME, folder))
    assert not (folder / ".cifar-10.download").exists()


def test_ctrl_c_stops_the_client_too(kaggle: Kaggle, tmp_path: Path) -> None:
    folder, pid = tmp_path / "data", tmp_path / "pid"
    kaggle.set_program(HALF + f"Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)")

    def interrupt() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        get(NAME, folder)
    thread.join()
    assert time.perf_counter() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert visible_names(folder) == []


def test_a_client_that_ignores_sigterm_is_killed(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        wait, asked = process.wait, []

        def impatient(timeout: float | None = None) -> int:
            asked.append(timeout)
            return wait(timeout and 0.1)

        monkeypatch.setattr(process, "wait", impatient)
        client._stop(process)
    assert process.returncode == -signal.SIGKILL
    assert asked[0] == 5


def test_a_client_that_cannot_run_is_an_error(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.path.write_text("#!/nowhere/python\n")
    assert str(kaggle.path) in refusal(get, NAME, tmp_path / "data")


def test_a_file_in_place_of_the_folder_is_an_error(kaggle: Kaggle, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    assert str(tmp_path / "data") in refusal(get, NAME, tmp_path / "data")
    assert kaggle.calls == []


@pytest.mark.parametrize("name", ["", "a b", "$(id)", "../x", "-f", "A", "a\nb", "x" * 200])
def test_names_are_checked(kaggle: Kaggle, tmp_path: Path, name: str) -> None:
    assert repr(name) in refusal(get, name, tmp_path)
    assert repr(name) in refusal(upload, name, write_submission(tmp_path), "m")
    assert kaggle.calls == []


def test_upload_passes_the_file_and_message_to_the_client(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.set_program(SUBMITTED)
    path = write_submission(tmp_path)
    answer = upload(NAME, Path(path.name), "-f $(id)\n=my\0 'first'")
    assert answer == "Successfully submitted to CIFAR-10 - Object Recognition in Images"
    assert kaggle.calls == [
        ["competitions", "submit", "-c", NAME, "-f", str(path), "--message=-f $(id) =my 'first'"]
    ]  # fmt: skip
    kaggle.set_program("")
    assert NAME in upload(NAME, path, " ")
    assert kaggle.calls[-1][-1] == "--message=my submission"


def test_a_failed_upload_with_exit_code_0_is_an_error(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.set_output("Could not submit to competition", code=0, stream="stdout")
    assert "Could not submit to competition" in refusal(upload, NAME, write_submission(tmp_path), "m")


def test_an_upload_needs_a_submission_file(kaggle: Kaggle, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    for name in ("none.csv", "empty.csv", "."):
        assert "not a submission" in refusal(upload, NAME, tmp_path / name, "m")
    assert kaggle.calls == []
