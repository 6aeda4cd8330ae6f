"""`cnnlab serve` as a process: without torch, stopped by signals, and errors at the start."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'cnnlab[serve]'")
pytest.importorskip("onnxruntime", reason="pip install 'cnnlab[serve]'")

from tiny import CLASSES, Client, png, tiny_onnx

from conftest import Command, one_line_error

RED = png((250, 0, 0))
LEFT_OUT = ("torch", "torchvision", "matplotlib", "scikit-learn", "safetensors", "tensorboard", "threadpoolctl",
            "filelock", "platformdirs", "packaging", "scipy")  # fmt: skip
# The command, unable to import the packages that docs/serve.md leaves out.
CODE = f"""
import sys
for name in {[*(name.replace("scikit-learn", "sklearn") for name in LEFT_OUT), "onnx", "onnxscript"]}:
    sys.modules[name] = None
from cnnlab.cli import main
main()
"""
Start = Callable[..., tuple[subprocess.Popen[str], Client]]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture
def start(onnx_file: Path) -> Iterator[Start]:
    processes = []

    def started(*options: str, **env: str) -> tuple[subprocess.Popen[str], Client]:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, "serve", str(onnx_file), "--port", "0", *options], env={**os.environ, **env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        line = process.stdout.readline()  # type: ignore[union-attr]
        found = re.fullmatch(r"serving tiny\.onnx \(3 classes\) at http://127\.0\.0\.1:(\d+)\n", line)
        assert found, (line, process.stderr.read())  # type: ignore[union-attr]
        return process, Client(int(found[1]))

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_the_docs_name_the_packages_that_are_needed() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    names = {re.split(r"[><=]", one)[0] for one in needed} - {*LEFT_OUT, "rich"}  # typer installs rich
    line = re.search(r"RUN pip install --no-cache-dir ([\w ]+)", (root / "docs" / "serve.md").read_text())
    assert line
    assert set(line[1].split()) == names


def accepted_requests(client: Client) -> int:
    """Return how many requests with an image are waiting or have been answered."""
    text = client.ask("/metrics")[1]
    return sum(int(count) for count in re.findall(r'(?m)^(?:cnnlab_queue_images|.*"/predict".*) (\d+)$', text))


def test_after_sigterm_accepted_requests_are_answered(start: Start) -> None:
    process, client = start("--max-wait", "1000", "--max-batch", "64")
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(client.ask, "/predict?top=1", RED) for _ in range(16)]
        while accepted_requests(client) < 16:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for one in waiting:
            status, found, _ = one.result(20)
            assert status == 200
            assert found["images"][0]["top"][0]["label"] == "red"
    out, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == "stopped\n"
    lines = [json.loads(line) for line in log.splitlines()]
    assert sum(line["path"] == "/predict" and line["status"] == 200 for line in lines) == 16
    with pytest.raises(ConnectionRefusedError):
        client.ask("/health")


def test_a_second_signal_ends_at_once(start: Start) -> None:
    process, client = start("--log", "text", CNNLAB_TOKEN="secret")
    assert client.ask("/predict", RED)[0] == 401
    with socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 9\r\n\r\n1")
        while "cnnlab_body_bytes 1\n" not in client.ask("/metrics", Authorization="Bearer secret")[1]:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None  # the pending request has 30 seconds
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGTERM
    assert re.match(r"\S+Z POST /predict 401 ", log)


def test_a_kill_amid_requests_leaves_only_correct_answers(start: Start) -> None:
    """Every complete answer that a client got is correct."""
    process, client = start("--threads", "1")
    colours = {name: png(tuple(250 * (i == k) for k in range(3))) for i, name in enumerate(CLASSES)}  # type: ignore[arg-type]
    found: list[tuple[str, Any]] = []
    cut: list[Exception] = []

    def ask(name: str) -> None:
        while True:
            try:
                status, answer, _ = client.ask("/predict", colours[name])
                found.append((name, (status, answer["images"][0]["top"][0]["label"])))
            except (HTTPException, OSError) as error:
                cut.append(error)
                return

    threads = [threading.Thread(target=ask, args=(CLASSES[i % 3],)) for i in range(6)]
    for thread in threads:
        thread.start()
    while len(found) < 60 and not cut:
        time.sleep(0.01)
    assert not cut
    process.kill()
    for thread in threads:
        thread.join(20)
    assert len(cut) == len(threads)
    assert all(answer == (200, name) for name, answer in found)


def test_bad_options_and_files_are_one_line(
    cnnlab: Command, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    junk, empty = tmp_path / "junk.onnx", tmp_path / "empty.onnx"
    junk.write_bytes(b"no onnx")
    empty.touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "runs" / "damaged").mkdir(parents=True)
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, says in [
            ((onnx_file, "--port", port), "--port"),
            ((onnx_file, "--host", "no.such.host.invalid"), "--host"),
            ((onnx_file, "--host", "0.0.0.0"), "CNNLAB_TOKEN"),
            ((onnx_file, "--host", "0.0.0.0", "--token", ""), "--token"),
            ((onnx_file, "--token", "two words"), "--token"),
            ((onnx_file, "--token", "secret", "--no-token"), "--no-token"),
            ((onnx_file, "--log", "xml"), "xml"),
            ((onnx_file, "--port", "70000"), "port"),
            ((onnx_file, "--threads", "0"), "threads"),
            ((onnx_file, "--max-batch", "0"), "max-batch"),
            ((onnx_file, "--max-images", "300"), "--max-queue"),
            ((onnx_file, "--timeout", "nan"), "timeout"),
            ((junk,), "junk.onnx"),
            ((empty,), "empty.onnx"),
            ((tmp_path / "folder",), "folder"),
            ((tmp_path / "missing.onnx",), "missing.onnx"),
            (("damaged", "--runs-dir", tmp_path / "runs"), "damaged"),
        ]:
            more = () if "--port" in options else ("--port", "0")
            assert says in one_line_error(cnnlab("serve", *options, *more)), options
    monkeypatch.setenv("CNNLAB_TOKEN", "")
    assert "CNNLAB_TOKEN" in one_line_error(cnnlab("serve", onnx_file, "--port", "0"))
