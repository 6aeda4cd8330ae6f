"""`cnnlab ui`: who may talk to it, what it answers, and its pages in Chromium."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

import cnnlab
from browser import Tab, chromium
from cnnlab import CnnlabError
from cnnlab.data import load_images
from cnnlab.inference import run_splits
from cnnlab.inference.suspects import find_suspects
from cnnlab.recipe import SETTINGS
from cnnlab.training.locks import training_pid
from cnnlab.training.runs import open_run
from conftest import Command, one_line_error

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'cnnlab[ui]'")
pytest.importorskip("starlette", reason="pip install 'cnnlab[ui]'")

from cnnlab.app import listing, searching  # noqa: E402
from cnnlab.app import server as pages  # noqa: E402
from cnnlab.app.processes import Trainings  # noqa: E402

TOKEN = "a-token-of-the-tests"
HOSTILE = "<img src=x onerror=alert(1)>"


class Server:
    """A server in a thread of this process, and requests to it as a browser sends them."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self.app = pages.make_app(pages.Settings(runs_dir, TOKEN, (self.host, f"localhost:{self.port}"), threads=1))
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", access_log=False, lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def stop(self) -> None:
        self.app.state.ended.set()
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def ask(self, path: str, body: bytes | None = None, **headers: str | None) -> tuple[int, Any, Any]:
        """Return status, JSON or text, and headers. headers: in place of those of the page's own requests."""
        usual = {"Cookie": f"cnnlab-{self.port}={TOKEN}", "Origin": self.url, "Host": self.host}
        sent = {**usual, **{key.replace("_", "-"): value for key, value in headers.items()}}
        request = urllib.request.Request(self.url + path, data=body)
        for key, value in sent.items():
            if value is not None:
                request.add_header(key, value)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=60) as answer:
                content, status, found = answer.read(), answer.status, answer.headers
        except HTTPError as error:
            content, status, found = error.read(), error.code, error.headers
        try:
            return status, json.loads(content), found
        except ValueError:
            return status, content.decode(), found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui") / "runs"


@pytest.fixture(scope="module")
def trained(folder: Path) -> list[Any]:
    return [
        cnnlab.train("digits", epochs=n, limit=100, seed=n, name=f"run-{n}", runs_dir=folder, progress="none")
        for n in (2, 1)
    ]


@pytest.fixture(scope="module")
def server(folder: Path, trained: list[Any]) -> Iterator[Server]:
    found = Server(folder)
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/", None, {"Cookie": None}),
        ("/?token=wrong", None, {"Cookie": None}),
        ("/api/runs", None, {"Cookie": None}),
        ("/api/runs", None, {"Cookie": "cnnlab-1=" + TOKEN}),
        ("/static/app/main.js", None, {"Cookie": None}),
        ("/api/runs", None, {"Host": "evil.example"}),
        ("/?token=" + TOKEN, None, {"Host": "evil.example", "Cookie": None}),
        ("/api/runs", None, {"Origin": "http://evil.example"}),
        ("/api/runs", None, {"Origin": None, "Sec_Fetch_Site": "cross-site"}),
        ("/api/train", b'{"data": "digits"}', {"Origin": "http://evil.example"}),
        ("/api/train", b'{"data": "digits"}', {"Origin": None}),
        ("/api/train", b'{"data": "digits"}', {"Origin": "null"}),
        ("/api/stop", b'{"run": "run-1"}', {"Cookie": None}),
        ("/api/try?run=run-1", b"x", {"Sec_Fetch_Site": "same-site"}),
    ],
)
def test_requests_without_a_valid_token_host_and_origin_are_refused(
    server: Server, path: str, body: bytes | None, headers: dict[str, str | None]
) -> None:
    status, _, found = server.ask(path, body, **headers)
    assert status == 403
    assert "set-cookie" not in found


def test_the_token_becomes_a_cookie(server: Server) -> None:
    status, _, headers = server.ask(f"/?token={TOKEN}", Cookie=None, Origin=None)
    assert (status, headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(headers["set-cookie"].split("; "))
    status, text, headers = server.ask("/", Origin=None)
    assert status == 200
    assert not re.search(r"<script(?![^>]*src=)|<style| on\w+=| style=", text)  # nothing inline
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/static/app/../server.py", None), ("/static/app/%2e%2e%2fserver.py", None), ("/static/nowhere/main.js", None),
        ("/api/report?run=../run-1", None), ("/api/report?run=/etc", None), ("/api/report?run=missing", None),
        ("/api/report", None), ("/api/report?live=1", None), ("/api/data?source=folder:/nowhere", None), ("/api/data?source=", None),
        ("/api/data?source=digits&split=train&class=x", None), ("/api/data?source=digits&split=both", None),
        ("/api/recipe?recipe=unknown", None), ("/api/try?run=run-1", b"no image"), ("/api/try?run=missing", b"x"),
        ("/api/train", b"[]"), ("/api/train", b"{"), ("/api/train", b'{"model": "net.py:Net"}'),
        ("/api/train", b'{"model": "efficientnet.py:Net"}'),
        ("/api/train", b'{"settings": ["epochs=0"]}'), ("/api/train", b'{"name": "../up"}'),
        ("/api/search", b'{"kind": "exact", "what": "--help"}'), ("/api/search", b'{"kind": "all", "what": "digits"}'),
        ("/api/search", b'{"kind": "suspects", "what": "../run-1"}'), ("/api/found?search=99", None),
        ("/api/train", b'{"name": "run-1"}'), ("/api/stop", b'{"run": "run-1"}'), ("/api/resume", b'{"run": "../x"}'),
    ],
)  # fmt: skip
def test_bad_requests_get_one_line(server: Server, path: str, body: bytes | None) -> None:
    before = sorted(p.name for p in server.runs_dir.iterdir())
    status, found, _ = server.ask(path, body)
    assert status in (400, 404)
    assert "Traceback" not in str(found)
    if status == 400:
        assert "\n" not in found["error"]
    assert sorted(p.name for p in server.runs_dir.iterdir()) == before


def test_uploads_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGEST", 1000)
    assert server.ask("/api/try?run=run-1", bytes(1001))[0] == 413
    assert server.ask("/api/train", bytes(1 << 17))[0] == 413


def test_rows_and_report_match_the_runs(server: Server, trained: list[Any]) -> None:
    rows = {row["name"]: row for row in server.ask("/api/runs")[1]["runs"]}
    for result in trained:
        row = rows[result.run.path.name]
        assert (row["state"], row["epochs"]) == ("finished", len(result.history))
        assert row["acc"] == result.summary["figures"]["accuracy"]
        assert row["curve"] == [one["val_acc"] for one in result.history]
    names = [result.run.path.name for result in trained]
    live = server.ask(f"/api/report?live=1&run={names[0]}")[1]["runs"][0]
    assert live["evaluation"] is None
    assert live["history"]["eval_acc"] == rows[names[0]]["curve"]
    both = server.ask("/api/report?" + "&".join(f"run={name}" for name in names))[1]
    expected = cnnlab.report(*[result.run for result in trained], threads=1).payload
    assert both["compare"] == expected["compare"]
    for a, b in zip(both["runs"], expected["runs"], strict=True):
        assert a["evaluation"]["confusion"] == b["evaluation"]["confusion"]
        assert a["evaluation"]["accuracy"] == b["evaluation"]["accuracy"]


def test_a_row_is_read_again_only_if_its_files_change(
    trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    for n in range(3):
        shutil.copytree(trained[0].run.path, tmp_path / "some" / f"run-{n}")
    found = listing.Runs(tmp_path / "some")
    opened: list[str] = []
    row = listing._row
    monkeypatch.setattr(listing, "_row", lambda name, path: opened.append(name) or row(name, path))
    found.rows()
    found.rows()
    assert sorted(opened) == ["run-0", "run-1", "run-2"]
    (tmp_path / "some" / "run-1" / "summary.json").write_text("{")
    states = {row["name"]: row["state"] for row in found.rows()}
    assert states == {"run-0": "finished", "run-1": "damaged", "run-2": "finished"}
    assert opened[3:] == ["run-1"]


def test_a_run_deleted_while_it_is_listed_counts_as_damaged(tmp_path: Path) -> None:
    assert listing._row("gone", tmp_path / "gone")["state"] == "damaged"


def test_an_unreadable_runs_folder_is_named_in_the_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: listing.Runs) -> None:
        raise PermissionError(13, "Permission denied", str(self.folder))

    monkeypatch.setattr(listing.Runs, "rows", refuse)
    status, found, _ = server.ask("/api/runs")
    assert status == 500
    assert str(server.runs_dir) in found["error"]
    server.app.state.prepare()


def test_try_matches_predict(server: Server, trained: list[Any]) -> None:
    run = trained[0].run
    images, _ = run_splits(run)
    file = io.BytesIO()
    Image.fromarray(images.images[5, 0].numpy()).save(file, "png")
    status, found, _ = server.ask(f"/api/try?run={run.path.name}", file.getvalue())
    assert status == 200
    expected = cnnlab.load_model(run).predict(images.images[5])
    assert [name for name, _ in found["top"]] == [name for name, _ in expected.top(5)[0]]
    assert [p for _, p in found["top"]] == pytest.approx([p for _, p in expected.top(5)[0]])
    assert found["map"].startswith("data:image/png;base64,")
    nearest = server.ask(f"/api/try?run={run.path.name}&nearest=1", file.getvalue())[1]["nearest"]
    assert nearest[0]["id"] == images.ids[5]
    assert nearest[0]["distance"] == pytest.approx(0, abs=1e-5)
    assert [one["distance"] for one in nearest] == sorted(one["distance"] for one in nearest)


def test_images_of_a_source_are_listed_by_split_and_class(server: Server, tmp_path: Path) -> None:
    found = server.ask("/api/data?source=digits")[1]
    train = load_images("digits", "train")
    assert train is not None
    assert found["counts"]["train"] == torch.bincount(train.labels).tolist()
    part = server.ask("/api/data?source=digits&split=train&class=3&start=10&count=5")[1]
    places = (train.labels == 3).nonzero().flatten()[10:15].tolist()
    assert [image["id"] for image in part["images"]] == [train.ids[i] for i in places]
    assert part["total"] == found["counts"]["train"][3]
    # Files are decoded when they are shown: one that cannot be read has no picture.
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "dogs" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    source = f"folder:{tmp_path / 'pets'}"
    part = server.ask(f"/api/data?source={source}&split=train")[1]
    assert [(image["id"], image["picture"] is None) for image in part["images"]] == [
        ("cats/0.png", False), ("cats/1.png", False), ("dogs/0.png", True), ("dogs/1.png", False)
    ]  # fmt: skip

    assert server.ask(f"/api/data?source={source}")[1]["counts"]["train"] == [2, 2]
    (tmp_path / "pets" / "dogs" / "1.png").rename(tmp_path / "pets" / "cats" / "2.png")
    assert server.ask(f"/api/data?source={source}")[1]["counts"]["train"] == [3, 1]
    relative = server.ask(f"/api/data?source=folder:{os.path.relpath(tmp_path / 'pets')}")[1]
    assert relative["data"] == source  # as runs record it


def test_a_report_that_lacks_images_is_made_again(folder: Path, server: Server, shapes: Path) -> None:
    result = cnnlab.train(
        data=f"folder:{shapes}", model="lenet", image_size=20, epochs=1, name="moving", runs_dir=folder, progress="none"
    )
    shapes.rename(shapes.with_name("away"))
    assert server.ask("/api/report?run=moving")[1]["runs"][0]["missing"]
    shapes.with_name("away").rename(shapes)
    assert not server.ask("/api/report?run=moving")[1]["runs"][0]["missing"]
    shutil.rmtree(result.run.path)


def test_too_many_runs_for_a_page_are_an_error(server: Server) -> None:
    many = [server.runs_dir / f"many-{n}" for n in range(21)]
    for path in many:
        shutil.copytree(server.runs_dir / "run-1", path)
    status, answer, _ = server.ask(f"/api/report?{'&'.join(f'run={path.name}' for path in many)}")
    for path in many:
        shutil.rmtree(path)
    assert status == 400
    assert "21 runs" in answer["error"]


def test_images_can_be_filtered_by_group(server: Server, tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for i in range(6):
        Image.fromarray(np.full((9, 9), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'cat' if i % 2 else 'dog'},{'p&1' if i < 4 else HOSTILE}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = quote(f"csv:{tmp_path / 't.csv'}")
    found = server.ask(f"/api/data?source={source}")[1]
    assert found["groups"] == {"train": [[HOSTILE, 2], ["p&1", 4]]}
    part = server.ask(f"/api/data?source={source}&split=train&group=p%261&class=0")[1]
    assert [(image["id"], image["group"]) for image in part["images"]] == [("1.png", "p&1"), ("3.png", "p&1")]
    assert server.ask(f"/api/data?source={source}&split=train&group=none")[1]["total"] == 0
    assert server.ask("/api/data?source=digits")[1]["groups"] == {}


def test_a_search_runs_in_a_separate_process(
    server: Server, trained: list[Any], tmp_path: Path, cnnlab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: dict[tuple[str, ...], str] = {}

    def run_here(kind: str, words: list[str]) -> searching.Search:  # prints as the command does, without its imports
        script = f"import time; time.sleep(0.2); print({printed[tuple(words)]!r})"
        words = [sys.executable, "-S", "-c", script]
        return searching.Search(kind, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    real = searching._run
    monkeypatch.setattr(searching, "_run", run_here)
    run = trained[0].run
    words = ("data", "suspects", str(run.path), "--json")
    printed[words] = cnnlab(*words).stdout
    body = json.dumps({"kind": "suspects", "what": run.path.name}).encode()
    number = server.ask("/api/search", body)[1]["search"]
    query = f"/api/found?search={number}&source=digits"
    assert not server.ask(query)[1]["done"]
    found = _wait_for(lambda: (answer := server.ask(query)[1])["done"] and answer)
    expected = find_suspects(run.path).suspects
    assert found["total"] == len(expected)
    assert [(row["path"], row["predicted"]) for row in found["rows"]] == [(s.path, s.predicted) for s in expected][:30]
    assert all(picture.startswith("data:image/") for picture in found["pictures"])
    for i, shade in enumerate((10, 200, 10)):
        (tmp_path / "pets" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(shade).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pets" / f"c{i % 2}" / f"{i}.png")
    source = f"folder:{tmp_path / 'pets'}"
    words = ("data", "duplicates", "--exact", source, "--json")
    printed[words] = cnnlab(*words).stdout
    number = server.ask("/api/search", json.dumps({"kind": "exact", "what": source}).encode())[1]["search"]
    query = f"/api/found?search={number}&source={quote(source)}"
    found = _wait_for(lambda: (answer := server.ask(query)[1])["done"] and answer)
    assert [row["ids"] for row in found["rows"]] == [["c0/0.png", "c0/2.png"]]
    assert len(found["pictures"]) == 2
    assert found["pictures"][0] == found["pictures"][1] is not None
    # A search that is killed has printed only its progress.
    script = "import sys, time; print('reading', file=sys.stderr, flush=True); time.sleep(60)"
    killed = subprocess.Popen([sys.executable, "-S", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    search = searching.Search("exact", killed)
    time.sleep(0.3)
    search.end()
    with pytest.raises(CnnlabError) as caught:
        search.found()
    assert "reading" not in str(caught.value)
    # A search that is stopped says so in one line.
    monkeypatch.setattr(searching, "_run", real)
    number = server.ask("/api/search", json.dumps({"kind": "near", "what": "folder:/nowhere"}).encode())[1]["search"]
    server.app.state.searches.end()
    status, found, _ = server.ask(f"/api/found?search={number}&source=digits")
    assert (status, found["error"].count("\n")) == (400, 0)


def test_the_form_has_all_settings(server: Server) -> None:
    found = server.ask("/api/recipes")[1]
    assert {s["name"] for s in found["settings"]} == SETTINGS.keys() - {"name", "model", "data"}


def test_a_training_runs_in_a_separate_session(folder: Path, trained: list[Any]) -> None:
    """It runs in a session of its own, so neither Ctrl-C in the server's terminal nor the server's end stops it."""
    trainings = Trainings(folder, None, 1)
    name = trainings.start({"data": "digits", "settings": ["epochs=1000", "limit=100", "compile=off"]})
    process = trainings._started[name]
    assert os.getsid(process.pid) != os.getsid(0)
    assert _wait_for(lambda: training_pid(folder / name)) == process.pid
    assert listing.Runs(folder).rows()[0]["state"] == "running"
    with pytest.raises(cnnlab.CnnlabError):
        trainings.resume(name)
    with pytest.raises(cnnlab.CnnlabError):  # even before the process holds the run's lock
        trainings._run(name, ["train", "--resume", str(folder / name)])
    assert trainings._started[name] is process
    Trainings(folder, None, 1).stop(name)  # another server can stop it, too
    assert process.wait(60) == 130
    assert "--resume" in trainings.states()[0]["output"]
    row = next(row for row in listing.Runs(folder).rows() if row["name"] == name)
    assert row["state"] == "interrupted"


def _wait_for(found: Any, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def test_the_command_ends_cleanly(tmp_path: Path, cnnlab: Command) -> None:
    words = [sys.executable, "-m", "cnnlab", "ui", "--no-open", "--runs-dir", str(tmp_path / "runs")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S{20,}", line)[1])  # type: ignore[index]
        assert one_line_error(cnnlab("ui", "--no-open", "--port", port))
        process.send_signal(2)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


# In the browser


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium(viewport={"width": 1440, "height": 900}, color_scheme="light", locale="en-US") as tab:
        tab.page.context.set_default_timeout(60_000)
        yield tab


def test_a_run_can_be_trained_and_inspected_in_the_browser(
    server: Server, trained: list[Any], tab: Tab, shapes: Path
) -> None:
    """Train, watch, stop, resume, open a cell of the confusion matrix, try an image, compare; no outside requests."""
    page, said = tab.page, []
    page.on("console", lambda message: said.append(message.text))
    tab.go(f"{server.url}/?token={TOKEN}")
    assert "token" not in page.url
    page.wait_for_selector("td.name")

    page.goto(f"{server.url}/#/train")
    page.wait_for_selector("#set-epochs", state="attached")
    page.fill("#train-name", "from-page")
    page.fill("#train-data", f"folder:{shapes}")
    page.fill("#train-model", "lenet")
    page.click("details summary")
    page.fill("#set-image_size", "28")
    page.fill("#set-epochs", "5000")
    page.fill("#set-limit", "100")
    page.click("button.primary")
    page.wait_for_url("**/run/from-page")
    page.wait_for_selector("#curves svg")
    assert page.locator(".notes", has_text="it is running").count() == 1
    assert page.locator(".notes", has_text="--resume").count() == 0
    page.click("text=Stop")
    page.wait_for_selector(".state.interrupted")
    before = len(open_run(server.runs_dir / "from-page").metrics())
    assert before > 0
    page.click("text=Resume")
    page.wait_for_selector(".state.running")
    _wait_for(lambda: len(open_run(server.runs_dir / "from-page").metrics()) > before)
    page.click("text=Stop")
    page.wait_for_selector(".state.interrupted")

    shapes.rename(shapes.with_name("moved"))
    page.click("text=Resume")
    page.wait_for_selector("details.failed pre")  # what the process printed that failed
    page.goto(f"{server.url}/#/runs")
    page.wait_for_selector("details.failed pre")

    page.goto(f"{server.url}/#/run/run-2")
    page.wait_for_selector("#confusion")
    page.goto(f"{server.url}/#/try/run-2")
    page.wait_for_selector("option", state="attached")
    file = io.BytesIO()
    Image.fromarray(run_splits(trained[0].run)[0].images[5, 0].numpy()).save(file, "png")
    page.set_input_files("#try-file", {"name": f"{HOSTILE}.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.wait_for_selector(".grid figure")
    best = cnnlab.load_model(trained[0].run).predict(run_splits(trained[0].run)[0].images[5]).labels[0]
    assert page.locator(".chance .label").first.text_content() == best

    page.goto(f"{server.url}/#/runs")
    for name in ("run-1", "run-2"):
        page.locator("tr", has_text=name).locator("input").check()
    page.click("a.compare")
    page.wait_for_selector("#each")
    page.wait_for_selector("#confusion")

    assert tab.errors == []
    assert said == []
    assert {request.split("/")[2] for request in tab.requests if not request.startswith(("data:", "blob:"))} == {
        server.host
    }


def test_a_click_is_not_lost_when_the_rows_change_during_it(server: Server, trained: list[Any], tab: Tab) -> None:
    page = tab.page
    tab.go(f"{server.url}/?token={TOKEN}#/runs")
    page.wait_for_selector("td.name")
    box = page.locator("tr", has_text="run-1").locator("input")
    box.hover()
    page.mouse.down()
    page.dispatch_event("input[type=search]", "input")  # redraws the rows, like a change of a run
    page.wait_for_timeout(200)
    page.mouse.up()
    assert box.is_checked()
    page.fill("input[type=search]", "run-2")  # the rows are redrawn after the click
    page.wait_for_function("document.querySelectorAll('td.name').length === 1")


def test_pages_name_their_language(server: Server, trained: list[Any], tab: Tab) -> None:
    page = tab.page
    tab.go(f"{server.url}/?token={TOKEN}#/runs")
    for address, drawn in (("runs", "td.name"), ("run/run-1", "#confusion"), ("train", "#set-epochs")):
        page.goto(f"{server.url}/#/{address}")
        page.wait_for_selector(drawn, state="attached")
        page.click(".language")
        page.wait_for_function("document.documentElement.lang === 'zh-CN'")
        page.click(".language")
        page.wait_for_function("document.documentElement.lang === 'en'")


# axe-core checks only the first few of repeated elements. The report's sections have a test of their own.
REPEATED = """tbody tr:nth-child(n+3), .grid > :nth-child(n+3), .tab:nth-child(n+4), .settings > :nth-child(n+4),
    section:not(#curves, #each, .result section)"""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@pytest.mark.parametrize(
    ("page", "drawn"),
    [
        ("runs", "td.name"),
        ("run/run-1", "#confusion"),
        ("compare/run-1/run-2", "#confusion"),
        ("try/run-1", "option"),
        ("train", "#set-epochs"),
        ("data/digits", ".grid img"),
        (f"run/{HOSTILE}", "#message.error"),
        (f"data/{HOSTILE}", "#message.error"),
    ],
)
def test_pages_fit_and_are_accessible(server: Server, trained: list[Any], tab: Tab, page: str, drawn: str) -> None:
    """At both widths, light and dark; hostile names do nothing."""
    axe = (
        pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install --group dev").Axe().axe_script
    )
    said: list[str] = []
    tab.page.on("console", lambda message: said.append(message.text))
    tab.go(f"{server.url}/?token={TOKEN}")
    tab.page.goto(f"{server.url}/#/{page}")
    tab.page.wait_for_selector(drawn, state="attached")
    for width in (390, 1440):
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    tab.value("(repeated) => document.querySelectorAll(repeated).forEach((node) => node.remove())", REPEATED)
    tab.value(axe)
    for width, theme, rules in (
        (390, "dark", RULES), (390, "light", ["color-contrast"]),
        (1440, "light", RULES), (1440, "dark", ["color-contrast"]),
    ):  # fmt: skip
        tab.page.set_viewport_size({"width": width, "height": 900})
        tab.page.emulate_media(color_scheme=theme)
        found = tab.value("(rules) => axe.run({ runOnly: rules, resultTypes: ['violations'] })", rules)["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in serious] == [], (width, theme)
    assert tab.value("document.querySelector('img[src=x]') === null")
    if "message" not in drawn:  # the browser itself logs error responses
        assert said == []
    assert tab.errors == []
    assert {url.split("/")[2] for url in tab.requests if not url.startswith(("data:", "blob:"))} == {server.host}
