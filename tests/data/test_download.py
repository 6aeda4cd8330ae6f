"""Downloading from a local server that drops connections, lies and refuses."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from cnnlab.data.download import download
from cnnlab.io.errors import CnnlabError

CONTENT = bytes(range(256)) * 8192  # 2 MiB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A server of CONTENT as /file. Its attributes set the faults."""

    ranges = True
    break_after: int | None = None
    content = CONTENT
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content) and start:
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.break_after is None else body[: server.break_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def parts(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_download_is_verified_and_reported(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    download([server.url], tmp_path / "deep" / "file.gz", md5=MD5, report=lambda *args: seen.append(args))
    assert (tmp_path / "deep" / "file.gz").read_bytes() == CONTENT
    assert parts(tmp_path / "deep") == ["file.gz"]
    assert seen[-1] == ("downloading file.gz", len(CONTENT), len(CONTENT))
    assert [s[1] for s in seen] == sorted(s[1] for s in seen)


def test_a_download_resumes_where_it_was_interrupted(server: Server, tmp_path: Path) -> None:
    server.break_after = 700_000
    with pytest.raises(CnnlabError, match=r"file\.gz"):
        download([server.url], tmp_path / "file.gz", md5=MD5)
    assert (tmp_path / "file.gz.part").stat().st_size == 700_000
    assert not (tmp_path / "file.gz").exists()
    server.break_after = None
    download([server.url], tmp_path / "file.gz", md5=MD5)
    assert server.requests == [None, "bytes=700000-"]
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


def test_a_download_restarts_if_the_server_cannot_resume(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    download([server.url], tmp_path / "file.gz", md5=MD5)
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"something else", CONTENT[:-1] + b"x", CONTENT + b"more"])
def test_partial_downloads_of_another_file_are_replaced(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "file.gz.part").write_bytes(left)
    download([server.url], tmp_path / "file.gz", md5=MD5)
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(CONTENT)
    download([server.url], tmp_path / "file.gz", md5=MD5)
    assert (tmp_path / "file.gz").read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_checksum_leaves_no_file_and_is_reported(server: Server, tmp_path: Path) -> None:
    server.content = b"an error page"
    with pytest.raises(CnnlabError, match=rf"checksum.*\b13 bytes\b.*{tmp_path}"):
        download([server.url], tmp_path / "file.gz", md5=MD5)
    assert parts(tmp_path) == []


def test_the_second_mirror_is_used_if_the_first_fails(server: Server, tmp_path: Path) -> None:
    with Server() as closed:
        dead = closed.url
    download([dead, server.url], tmp_path / "file.gz", md5=MD5)
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_http_errors_are_one_line(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(CnnlabError, match=str(tmp_path)) as caught:
        download([server.url], tmp_path / "file.gz", md5=MD5)
    assert "\n" not in str(caught.value)
    assert MD5 in str(caught.value)


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with Server() as closed:
        dead = closed.url
    with pytest.raises(CnnlabError, match=dead) as caught:
        download([dead], tmp_path / "file.gz", md5=MD5)
    assert "\n" not in str(caught.value)


def test_two_processes_download_a_file_once(server: Server, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cnnlab.data.download import download\n"
        f"download([{server.url!r}], Path('file.gz'), md5={MD5!r})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(2)]
    assert [p.wait(200) for p in running] == [0, 0]
    assert (tmp_path / "file.gz").read_bytes() == CONTENT
    assert server.requests == [None]


def test_a_killed_download_is_continued(server: Server, tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from cnnlab.data.download import download\n"
        "def report(what, done, total):\n"
        "    if done > 1_000_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"download([{server.url!r}], Path('file.gz'), md5={MD5!r}, report=report)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -9
    left = (tmp_path / "file.gz.part").stat().st_size
    assert left > 0
    download([server.url], tmp_path / "file.gz", md5=MD5)
    assert server.requests == [None, f"bytes={left}-"]
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


def test_fashion_mnist_is_downloaded_from_the_users_own_server(
    fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnlab.data import SourceOptions, load_images

    raw = fashion_folder / "FashionMNIST" / "raw"
    handler = functools.partial(QuietFiles, directory=str(raw))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        monkeypatch.setenv("CNNLAB_FASHION_MNIST_URL", f"http://127.0.0.1:{server.server_address[1]}")
        try:
            found = load_images("fashion-mnist", "test", SourceOptions(data_dir=tmp_path))
        finally:
            server.shutdown()
            thread.join()
    assert found is not None
    assert len(found) == 10_000
    here = tmp_path / "FashionMNIST" / "raw"
    assert parts(here) == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]

    # the error names a truncated file and a remedy; the file stays
    file = here / "t10k-images-idx3-ubyte.gz"
    os.truncate(file, 1000)
    with pytest.raises(CnnlabError, match=r"t10k-images-idx3-ubyte\.gz.*\b1000 bytes\b.*official"):
        load_images("fashion-mnist", "test", SourceOptions(data_dir=tmp_path))
    assert file.stat().st_size == 1000


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


HOLD = """
import sys, time
from filelock import FileLock
with FileLock("file.gz.lock"):
    print("locked", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_waiting_for_another_process_is_reported_and_ends_with_it(server: Server, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "600"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        reports: list[str] = []

        def report(what: str, done: int, total: int) -> None:
            reports.append(what)
            holder.kill()  # at the first report; the system then releases the lock

        download([server.url], tmp_path / "file.gz", md5=MD5, report=report)
    assert "waiting" in reports[0]
    assert "file.gz.lock" in reports[0]
    assert not any("waiting" in what for what in reports[1:])
    assert (tmp_path / "file.gz").read_bytes() == CONTENT


def test_a_stalled_process_that_holds_the_lock_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnlab.data.download._STALLED", 1.0)
    with FileLock(tmp_path / "file.gz.lock", thread_local=False):
        failures: list[str] = []

        def call() -> None:
            try:
                download([server.url], tmp_path / "file.gz", md5=MD5)
            except CnnlabError as error:
                failures.append(str(error))

        thread = threading.Thread(target=call)
        start = time.monotonic()
        thread.start()
        while time.monotonic() - start < 2:  # a slow download: others wait while the file grows
            with (tmp_path / "file.gz.part").open("ab") as file:
                file.write(b"x")
            time.sleep(0.1)
        assert not failures
        thread.join(30)
    assert len(failures) == 1
    assert "file.gz.lock" in failures[0]
    assert server.requests == []


def test_a_file_beyond_the_limit_is_refused_before_it_is_written(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CnnlabError, match=r"2,097,152 bytes.* 1,000 bytes"):
        download([server.url], tmp_path / "x", limit=1000)
    assert not (tmp_path / "x.part").exists()
