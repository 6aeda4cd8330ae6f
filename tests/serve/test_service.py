"""The service in a thread of this process: answers, limits, and refused requests."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="pip install 'cnnlab[serve]'")
pytest.importorskip("onnxruntime", reason="pip install 'cnnlab[serve]'")

import jsonschema
from tiny import CLASSES, SIDE, Client, form, png, serving, tiny_onnx

import cnnlab
from cnnlab.export.runtime import Exported, open_exported
from cnnlab.serve import connections
from cnnlab.serve.server import Server, make_server
from cnnlab.serve.service import make_app
from cnnlab.serve.settings import Limits
from conftest import Command

RED, GREEN, BLUE = png((250, 0, 0)), png((0, 250, 0)), png((0, 0, 250))
SMALL = Limits(body=20_000, bodies=50_000, pixels=10_000, images=3, max_queue=8, connections=12,
               seconds=1.0, header_seconds=0.4, idle_seconds=0.4, linger=0.4)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return open_exported(tiny_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx"), threads=1)


@pytest.fixture(scope="module")
def service(model: Exported) -> Iterator[tuple[Client, Server]]:
    with serving(model, SMALL) as found:
        yield found


@pytest.fixture
def client(service: tuple[Client, Server]) -> Client:
    return service[0]


@pytest.fixture
def cnnlab_(request: pytest.FixtureRequest) -> Command:
    """The fixture `cnnlab` under another name: here `cnnlab` is the package."""
    found: Command = request.getfixturevalue("cnnlab")
    return found


class Held:
    """A network that waits until it is told to go on."""

    def __init__(self, model: Exported) -> None:
        self.classes, self.decoding, self.threshold = model.classes, model.decoding, model.threshold
        self.model, self.go, self.sizes = model, threading.Event(), []  # type: ignore[var-annotated]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        self.sizes.append(len(pixels))
        assert self.go.wait(20)
        return self.model.probabilities(pixels)


def test_one_image_is_classified(client: Client) -> None:
    status, found, headers = client.ask("/predict?top=2", GREEN, Content_Type="image/png")
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    (one,) = found["images"]
    assert [best["label"] for best in one["top"]] == ["green", "red"]
    assert one["image"] == "image"
    assert one["none_of_these"] is False
    grey = client.ask("/predict", png((128, 128, 128)))[1]["images"][0]
    assert grey["none_of_these"] is True  # each class has a probability of 1/3, below the threshold
    assert len(client.ask("/predict?top=99", GREEN)[1]["images"][0]["top"]) == len(CLASSES)


def test_many_images_each_with_its_own_error(client: Client) -> None:
    body, headers = form(("r.png", RED), ("bad\u202e.jpg", b"no image"), ("../../b.png", BLUE))
    status, found, _ = client.ask("/predict?top=1", body, **headers)
    assert status == 200
    first, bad, last = found["images"]
    assert (first["image"], first["top"][0]["label"]) == ("r.png", "red")
    assert (last["image"], last["top"][0]["label"]) == ("../../b.png", "blue")
    assert bad.keys() == {"image", "error"}
    assert bad["image"] == "bad\\u202e.jpg"
    assert bad["error"].isprintable()


@pytest.mark.parametrize(
    "head",
    [
        'form-data; name="image"; filename="a;b=\\"c\\".png"',
        "form-data; name=image; filename=x.png",
        "form-data; name=\"image\"; filename*=UTF-8''%E7%8C%AB.png",
        'form-data; name="image"; filename="猫.png"',
        'form-data; name="image"\r\nContent-Type: image/png',
    ],
)
def test_file_names_are_read_from_the_form(client: Client, head: str) -> None:
    body = b"preamble\r\n--b \r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + RED + b"\r\n--b--\r\nepilogue"
    status, found, _ = client.ask("/predict", body, Content_Type='multipart/form-data; charset=utf-8; boundary="b"')
    assert status == 200, found
    assert found["images"][0]["image"] in ('a;b="c".png', "x.png", "猫.png", "image")


def bomb() -> bytes:
    """Return a tiny PNG file of 200,000 x 200,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))  # fmt: skip


MULTI = {"Content-Type": "multipart/form-data; boundary=xyz"}
BAD: list[tuple[str, str, bytes | None, dict[str, str], int]] = [
    ("GET", "/predict", None, {}, 405),
    ("PUT", "/predict", b"x", {}, 405),
    ("DELETE", "/health", None, {}, 405),
    ("POST", "/nothing", b"x", {}, 404),
    ("GET", "/../etc/passwd", None, {}, 404),
    ("POST", "/predict", b"", {}, 400),
    ("POST", "/predict?top=0", RED, {}, 400),
    ("POST", "/predict?top=-1", RED, {}, 400),
    ("POST", "/predict?top=1e3", RED, {}, 400),
    ("POST", "/predict?top=99999999999", RED, {}, 400),
    ("POST", "/predict?top=%00", RED, {}, 400),
    ("POST", "/predict?tpo=3", RED, {}, 400),
    ("POST", "/predict", RED[:40], {}, 422),
    ("POST", "/predict", b"%!PS-Adobe-3.0 EPSF-3.0", {}, 422),
    ("POST", "/predict", b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, 422),
    ("POST", "/predict", b"\x93NUMPY\x01\x00" + b"\xff" * 100, {}, 422),
    ("POST", "/predict", bomb(), {}, 413),
    ("POST", "/predict", png((1, 2, 3), 101), {}, 413),  # too many pixels
    ("POST", "/predict", bytes(20_001), {}, 413),
    ("POST", "/predict", RED, {"Content-Type": "application/json"}, 415),
    ("POST", "/predict", RED, {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ("POST", "/predict", RED, {"Content-Encoding": "gzip"}, 415),
    ("POST", "/predict", RED, {"Content-Type": "multipart/form-data"}, 400),
    ("POST", "/predict", RED, MULTI, 400),
    ("POST", "/predict", form(("a", RED))[0][:-9], MULTI, 400),  # truncated
    ("POST", "/predict", form(("a", RED))[0][:30], MULTI, 400),
    ("POST", "/predict", b"--xyz--\r\n", MULTI, 400),
    ("POST", "/predict", b"--xyz\r\n\r\nno headers\r\n--xyz--", MULTI, 400),
    ("POST", "/predict", b"--xyz" + b"\r\n--xyz" * 2000, MULTI, 400),
    ("POST", "/predict", b'--xyz\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--xyz--\r\n', MULTI, 400),
    ("POST", "/predict", form(*[("a", RED)] * 4)[0], MULTI, 413),  # too many images
    ("POST", "/predict", form(("a", b"junk"))[0], MULTI, 422),  # with one image, its error is that of the request
    ("POST", "/predict", form(("a" * 9000, RED))[0], MULTI, 400),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), BAD)
def test_bad_requests_get_one_line_and_the_service_keeps_running(
    client: Client, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    found, answer, _ = client.ask(path, body, method, **headers)
    assert found == status, answer
    assert answer.keys() == {"error"}
    assert answer["error"].isprintable()
    assert len(answer["error"]) < 500
    assert client.ask("/predict", RED)[0] == 200


HEAD = b"POST /predict HTTP/1.1\r\nHost: %b\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60), 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost: %b\r\nA: " + b"x" * 400_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (HEAD + b"Content-Length: 10737418240\r\n\r\n" + bytes(60_000), 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + bytes(4096) + b"\r\n") * 10, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"zz\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nhel", 408),  # sends no more
        (HEAD + b"Content-Length: 100\r\n\r\nhello", 408),
        (HEAD + b"Content-Le", 408),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 30000\r\n\r\n", 413),  # without a 100
    ],
)
def test_hostile_connections_are_answered_and_closed(client: Client, request_: bytes, status: int) -> None:
    found = client.raw(request_.replace(b"%b", b"127.0.0.1:%d" % client.port))
    assert found.startswith(b"HTTP/1.1 %d " % status), found[:200]
    assert json.loads(found.partition(b"\r\n\r\n")[2]).keys() == {"error"}
    assert client.ask("/health")[0] == 200


def test_a_stalled_service_still_reports_a_timeout(model: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SLACK", 0.1)
    with serving(model, replace(SMALL, seconds=0.1)) as (client, server), ThreadPoolExecutor(1) as pool:
        head = HEAD.replace(b"%b", b"127.0.0.1:%d" % client.port)
        answer = pool.submit(client.raw, head + b"Content-Length: 100\r\n\r\nhello")
        while not server.service.bodies:
            time.sleep(0.001)
        server.service.batcher.loop.call_soon_threadsafe(time.sleep, 0.5)
        assert answer.result(20).startswith(b"HTTP/1.1 408 ")


def test_silent_connections_are_closed_and_limited(client: Client) -> None:
    silent = [socket.create_connection(("127.0.0.1", client.port), timeout=10) for _ in range(SMALL.connections)]
    status, answer, headers = client.ask("/health")
    assert (status, headers["retry-after"]) == (503, "1")
    assert answer.keys() == {"error"}
    for stream in silent:  # closed once the time for headers is over
        assert stream.recv(10) == b""
        stream.close()
    assert client.ask("/health")[0] == 200


def test_a_refusal_reaches_a_client_that_sends_everything_first(model: Exported) -> None:
    with serving(model, Limits(body=20_000, linger=20)) as (client, _):
        assert client.ask("/predict", bytes(30_000_000), Connection="close")[0] == 413  # as urllib sends it
        head = HEAD.replace(b"%b", b"127.0.0.1:%d" % client.port) + b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"11170\r\n" + bytes(70_000) + b"\r\n"  # more than the server reads ahead
        assert client.raw(head + chunk + b"no chunk" + bytes(30_000_000)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("shut", [False, True])
def test_a_client_that_reads_nothing_is_closed(model: Exported, shut: bool) -> None:
    with serving(model, SMALL) as (client, server), socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stream.connect(("127.0.0.1", client.port))
        connections = server.server_state.connections
        while not connections:
            time.sleep(0.002)
        transport = next(iter(connections)).transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        stream.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % client.port * 8)
        while server.service.metrics.requests["/openapi.json", 200] < 8:
            time.sleep(0.002)
        assert transport.get_write_buffer_size()
        if shut:
            stream.shutdown(socket.SHUT_WR)
        end = time.monotonic() + 20
        while connections and time.monotonic() < end:
            time.sleep(0.01)
        assert not connections


def test_a_connection_serves_several_requests(client: Client) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % client.port
    found = client.raw(one + one, one)  # two pipelined requests and one more, then it closes
    assert found.count(b"HTTP/1.1 200 OK") == 3
    image = (
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n\r\n" % (client.port, len(RED)) + RED
    )
    assert client.raw(image, shut=True).endswith(b'"none_of_these": false}]}')


def test_images_that_arrive_together_are_classified_together(model: Exported) -> None:
    colours = [(i * 5, 250 - i * 5, i * 37 % 251) for i in range(40)]
    alone = [model.probabilities(np.full((1, 3, SIDE, SIDE), 0, np.uint8) + np.array(c, np.uint8)[:, None, None])[0]
             for c in colours]  # fmt: skip
    held = Held(model)
    with serving(held, Limits(max_batch=16)) as (client, server), ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda c: pool.submit(client.ask, "/predict", png(c)), colours))
        while server.service.batcher.held < len(colours):
            time.sleep(0.005)
        held.go.set()
        for answer, expected in zip(answers, alone, strict=True):
            status, found, _ = answer.result(20)
            assert status == 200
            top = {best["label"]: best["probability"] for best in found["images"][0]["top"]}
            assert [top[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-7)
    assert sum(held.sizes) == len(colours)
    assert max(held.sizes) == 16
    assert len(held.sizes) <= 5


def test_a_full_queue_refuses_and_a_slow_network_times_out(model: Exported) -> None:
    held = Held(model)
    with serving(held, SMALL) as (client, server), ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.ask, "/predict", RED)]
        while not held.sizes:  # until the network works on the first one
            time.sleep(0.005)
        waiting += [pool.submit(client.ask, "/predict", RED) for _ in range(7)]
        while server.service.batcher.held < 8:
            time.sleep(0.005)
        for path, body in (("/predict", RED), ("/ready", None)):
            status, answer, headers = client.ask(path, body)
            assert (status, headers["retry-after"], "queue" in answer["error"]) == (503, "1", True)
        assert client.ask("/health")[0] == 200
        assert {one.result()[0] for one in waiting} == {503}  # no image was classified in time
        held.go.set()
        while server.service.batcher.held:
            time.sleep(0.005)
        assert client.ask("/ready")[0] == client.ask("/predict", RED)[0] == 200
        assert held.sizes == [1, 1]  # the first and the last; images that nobody waits for are skipped


def test_a_failing_network_gives_status_500(model: Exported) -> None:
    held = Held(model)
    held.probabilities = lambda pixels: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with serving(held) as (client, _):
        assert client.ask("/predict", RED)[0] == 500
        held.probabilities = lambda pixels: np.full((len(pixels), 3), np.nan)  # type: ignore[method-assign]
        assert client.ask("/predict", RED)[0] == 500
        held.probabilities = model.probabilities  # type: ignore[method-assign]
        assert client.ask("/predict", RED)[0] == 200


def test_an_image_that_gives_nan_fails_alone(model: Exported) -> None:
    def probabilities(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        rows = model.probabilities(pixels)
        return np.where(pixels[:, :1, 0, 0] > 100, rows, np.nan)  # NaN for all images but red ones

    held, sizes = Held(model), []  # type: ignore[var-annotated]
    held.probabilities = probabilities  # type: ignore[method-assign]
    with serving(held, Limits(max_batch=2, max_wait=20_000)) as (client, _), ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda image: client.ask("/predict", image)[0], [RED, GREEN])
        assert list(answers) == [200, 500]
    assert sizes == [2]


def test_requests_need_an_allowed_host_and_the_token(model: Exported, client: Client) -> None:
    assert client.ask("/predict", RED, Host="evil.example")[0] == 403
    assert client.ask("/predict", RED, Origin="http://evil.example")[0] == 403
    assert client.ask("/predict", RED, Sec_Fetch_Site="cross-site")[0] == 403
    assert client.ask("/predict", RED, Host=f"localhost:{client.port}")[0] == 200
    with serving(model, token="s3cret") as (guarded, _):
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "é"},
        ):
            for path in ("/predict", "/metrics", "/openapi.json", "/", "/nothing"):
                status, _, headers = guarded.ask(path, RED if path == "/predict" else None, **header)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert guarded.ask("/health")[0] == guarded.ask("/ready")[0] == 200
        status, _, _headers = guarded.ask("/predict", RED, Authorization="Bearer s3cret", Host="cats.example")
        assert status == 200
        status, text, _headers = guarded.ask("/", Authorization="bearer s3cret")
        assert status == 200
        assert "-H 'Authorization: Bearer TOKEN'" in text  # without the header, the command on the page would get 401
    with serving(model, host="lab.example") as (named, _):  # the name in the printed address
        assert named.ask("/predict", RED, Host=f"lab.example:{named.port}")[0] == 200
        assert named.ask("/predict", RED, Host=f"evil.example:{named.port}")[0] == 403
    with serving(model, check_host=False) as (everyone, _):
        assert everyone.ask("/predict", RED, Host="cats.example")[0] == 200


def test_the_host_of_port_80_has_no_port(model: Exported) -> None:
    """Curl and browsers leave the port out."""
    listener = Mock(getsockname=lambda: ("127.0.0.1", 80))
    server = make_server(model, listener, limits=SMALL, log=Mock(), name="tiny")

    def status(host: bytes) -> int:
        async def send(message: Any) -> None:
            sent.append(message)

        sent: list[Any] = []
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", host)]}
        asyncio.run(server.config.app(scope, Mock(), send))  # type: ignore[operator,arg-type]
        return int(sent[0]["status"])

    assert [status(host) for host in (b"localhost", b"localhost:80", b"127.0.0.1")] == [200] * 3
    assert [status(host) for host in (b"evil.example", b"localhost:8000")] == [403] * 2


def test_the_openapi_description_matches_the_service(service: tuple[Client, Server]) -> None:
    client, server = service
    described = client.ask("/openapi.json")[1]
    assert described["openapi"].startswith("3.1")
    routes = {route.path: route.methods - {"HEAD"} for route in make_app(server.service).routes}
    assert {path: {method.upper() for method in ways} for path, ways in described["paths"].items()} == routes
    names = [way["operationId"] for ways in described["paths"].values() for way in ways.values()]
    assert len(set(names)) == len(names)

    def check_schema(path: str, answer: tuple[int, Any, Any], method: str = "get") -> None:
        response = described["paths"][path][method]["responses"][str(answer[0])]
        ((kind, content),) = response["content"].items()
        assert answer[2]["content-type"].startswith(kind)
        schema = {**content["schema"], "components": described["components"]}
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(answer[1], schema)

    for path in ("/health", "/ready", "/metrics", "/openapi.json", "/"):
        check_schema(path, client.ask(path))
        check_schema(path, client.ask(path, Host="evil.example"))
    body, headers = form(("a", RED), ("b", b"junk"))
    check_schema("/predict", client.ask("/predict", body, **headers), "post")
    for method, path, body_, sent, status in BAD:
        if method == "POST" and path.startswith("/predict") and status != 405:
            check_schema("/predict", client.ask(path, body_, method, **sent), "post")


def test_metrics_count_requests_and_images(model: Exported) -> None:
    with serving(model) as (client, _):
        body, headers = form(("a", RED), ("b", b"junk"))
        assert client.ask("/predict", body, **headers)[0] == 200
        assert client.ask("/predict", b"junk")[0] == 422
        assert client.ask("/%22%0a{}", b"")[0] in (400, 404)
        text = client.ask("/metrics")[1]
    lines = text.splitlines()
    assert {'cnnlab_requests_total{path="/predict",status="200"} 1', 'cnnlab_images_total{result="ok"} 1',
            'cnnlab_images_total{result="error"} 2', "cnnlab_queue_images 0", "cnnlab_body_bytes 0",
            "cnnlab_request_seconds_count 2", "cnnlab_batch_images_sum 1.0"} <= set(lines)  # fmt: skip
    for name in {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}:
        family = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert f"# TYPE {family}" in text


def test_answers_match_predict(shapes: Path, tmp_path: Path, cnnlab_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for JPEG, CMYK, 16-bit, rotated, transparent and palette images, alone and together."""
    from cnnlab.serve import model

    # Run the command in this process: importing PyTorch again takes seconds.
    monkeypatch.setattr(model.subprocess, "run", lambda command, **_: cnnlab_(*command[3:]))

    settings = {"epochs": 1, "batch_size": 8, "fit": "crop", "progress": "none"}
    run = cnnlab.train(data=f"folder:{shapes}", model="lenet", runs_dir=tmp_path / "runs", name="one", **settings).run
    files = image_kinds(tmp_path)
    expected, _ = cnnlab.predict(run, files, top=2)
    with serving(model.open_model("one", tmp_path / "runs", threads=1)) as (client, _):
        body, headers = form(*((file.name, file.read_bytes()) for file in files))
        together = client.ask("/predict?top=2", body, **headers)[1]["images"]
        alone = [client.ask("/predict?top=2", file.read_bytes())[1]["images"][0] for file in files]
    for file, one, other, answer in zip(files, together, alone, expected, strict=True):
        assert one["image"] == file.name
        for found in (one, other):
            assert [best["label"] for best in found["top"]] == [label for label, _ in answer.top], file
            assert [best["probability"] for best in found["top"]] == pytest.approx([p for _, p in answer.top], abs=1e-5)
            assert found["none_of_these"] == answer.none_of_these


def image_kinds(folder: Path) -> list[Path]:
    """Write an image of each kind that is easy to decode wrongly."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize((45, 30), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = (np.asarray(photo.convert("L")).astype(np.uint16) * 257).astype(np.uint16)
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    for name, image, options in (
        ("plain.jpg", photo, {}), ("cmyk.jpg", photo.convert("CMYK"), {}), ("deep.png", Image.fromarray(deep), {}),
        ("turned.jpg", photo, {"exif": exif}), ("palette.gif", photo.quantize(16), {"transparency": 3}),
        ("clear.png", clear, {}),
    ):  # fmt: skip
        image.save(folder / name, **options)  # type: ignore[arg-type]
    return [*sorted(folder.glob("*.*g")), folder / "palette.gif"]
