"""`cnnlab export --to web`: the files, the pixels against Pillow's, and the page in Chromium, also offline."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from browser import Tab, chromium
from cnnlab.export import runtime_js
from cnnlab.export.activation import add_map
from cnnlab.export.runtime import open_exported
from cnnlab.export.runtime_js import WebRuntime, web_runtime
from cnnlab.export.web import PAGE, WebPage, check_place, filters_of, write_file, write_folder
from cnnlab.inference import validation_images
from cnnlab.inspect.report.page import script
from cnnlab.io import decode
from cnnlab.io.decode import Decoding
from cnnlab.io.errors import CnnlabError
from cnnlab.training.runs import Run
from conftest import Command, one_line_error

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'cnnlab[export]'")

ABOUT: dict[str, Any] = {  # the description of an exported file
    "classes": ["a", "b"], "threshold": 0.0, "run": "r", "network": "n", "parameters": 1,
    "recipe": {"name": "digits", "data": "digits"},
    "preprocessing": {"channels": 1, "native_size": 8, "fit": "pad", "background": "black", "low": 0.0, "high": 0.0},
}  # fmt: skip
TEXT = json.dumps(ABOUT)
FAKE = WebRuntime(b"export {};", b"\0asm")


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder as `python -m http.server` does."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium(viewport={"width": 1440, "height": 900}) as found:
        yield found


@pytest.fixture(scope="module")
def runtime() -> WebRuntime:
    given = os.environ.get("CNNLAB_ORT_WEB")
    if given is None and not all((runtime_js.cache_folder() / name).exists() for name in runtime_js.SHA256):
        pytest.skip(
            f"onnxruntime-web is not here: npm pack onnxruntime-web@{runtime_js.VERSION}, and name the file in CNNLAB_ORT_WEB"
        )
    return web_runtime(Path(given) if given else None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Small files in place of onnxruntime-web's, and an empty cache."""
    files = {runtime_js.SCRIPT: b"script" * 1000, runtime_js.WASM: b"wasm" * 1000}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(runtime_js, "SHA256", sums)
    monkeypatch.setattr(runtime_js, "cache_folder", lambda: tmp_path / "cache")
    return files


def write_package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_runtime_is_downloaded_once_and_checked(small: dict[str, bytes], tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name, content in small.items():
        (site / name).write_bytes(content)
    with serve_folder(site) as url:
        assert web_runtime(address=url) == WebRuntime(*small.values())
    assert web_runtime(address=url) == WebRuntime(*small.values())  # the server is gone
    for name in small:
        (tmp_path / "cache" / name).unlink()
    (site / runtime_js.WASM).write_bytes(b"evil")
    with serve_folder(site) as url, pytest.raises(CnnlabError):
        web_runtime(address=url)
    assert not (tmp_path / "cache" / runtime_js.WASM).exists()


def test_the_runtime_is_read_from_a_package(small: dict[str, bytes], tmp_path: Path) -> None:
    assert web_runtime(write_package(tmp_path / "good.tgz", small)) == WebRuntime(*small.values())
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name, content in small.items():
        (folder / "dist" / name).write_bytes(content)
    assert web_runtime(folder) == WebRuntime(*small.values())
    other = write_package(tmp_path / "other.tgz", {**small, runtime_js.WASM: b"of another version"})
    whole = other.read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.tgz").write_bytes(whole[:30] + b"xxxxxxxx" + whole[38:])
    (tmp_path / "text.tgz").write_text("no package")
    for name in ("other.tgz", "cut.tgz", "damaged.tgz", "text.tgz", "missing.tgz", "cache"):
        with pytest.raises(CnnlabError):
            web_runtime(tmp_path / name)


def test_ci_packs_the_pinned_runtime_version() -> None:
    text = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert f"onnxruntime-web@{runtime_js.VERSION}" in text


def test_page_modules_share_no_name() -> None:
    """The modules are joined into one script, in which each name may be declared only once."""
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script(PAGE), re.MULTILINE)
    assert len(names) > 100
    assert len(names) == len(set(names)), [name for name in names if names.count(name) > 1]


def test_an_exported_folder_is_replaced_but_other_files_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "page"
    write_folder(WebPage(b"first", TEXT), FAKE, folder)
    first = {path.name for path in folder.iterdir()}
    mine = {"page-notes.txt", "network-plan"}
    for name in mine:
        (folder / name).touch()
    write_folder(WebPage(b"second", TEXT), FAKE, folder)
    assert mine <= {path.name for path in folder.iterdir()}
    second = {path.name for path in folder.iterdir()} - mine
    assert len(first) == len(second) == 8
    assert {name.partition("-")[0] for name in first - second} == {"network"}
    # Opened without a server, the page runs no scripts, so the HTML itself must say what to do.
    assert re.search(r'<div id="page">.*http\.server.*</div>', (folder / "index.html").read_text())
    kept = (folder / "worker.js").read_text()
    assert all(f'"./{name}"' in kept for name in second - {"worker.js", "index.html", "onnxruntime-web.LICENSE"})
    with pytest.raises(CnnlabError):
        write_folder(WebPage(b"", TEXT), FAKE, folder / "index.html" / "below")


def test_only_exported_pages_are_replaced(tmp_path: Path) -> None:
    page, one, other = tmp_path / "page", tmp_path / "page.html", tmp_path / "other"
    check_place(page, False, False)
    write_folder(WebPage(b"", TEXT), FAKE, page)
    write_file(WebPage(b"", TEXT), FAKE, one)
    other.mkdir()
    check_place(other, False, False)
    (other / "index.html").write_text("mine")
    check_place(page, False, True)
    check_place(one, True, True)
    for place, single, force in (
        (page, False, False), (one, True, False), (other, False, True), (other / "index.html", True, True),
        (one, False, True), (page, True, True),
    ):  # fmt: skip
        with pytest.raises(CnnlabError):
            check_place(place, single, force)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(1000)
    with patch("cnnlab.export.web.LARGEST_FILE", 1000), pytest.raises(CnnlabError):
        write_file(WebPage(noise, TEXT), FAKE, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# Pixels


def photograph(mode: str, width: int = 45, height: int = 33) -> Image.Image:
    rng = np.random.default_rng(len(mode) + width)
    channels = Image.new(mode, (1, 1)).getbands()
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / 7 + k) + 30 * np.cos(y / (5 + k)) for k in range(len(channels))]
    pixels = np.clip(np.stack(waves, 2) + rng.normal(0, 20, (height, width, len(channels))), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if len(channels) == 1 else pixels, mode)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def image_kinds() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.random.default_rng(0).integers(0, 65536, (9, 14)).astype(np.uint16)
    cut_out = photograph("RGBA")
    cut_out.putalpha(cut_out.getchannel("A").point(lambda a: 255 if a > 127 else 0))
    sheet = photograph("CMYK")
    ycck = bytearray(encode(sheet, "JPEG", subsampling="4:2:0"))
    ycck[ycck.index(b"Adobe") + 11] = 2
    flag = Image.new("P", (5, 4))
    flag.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 200])
    flag.putdata([n % 3 for n in range(20)])
    return {
        "jpeg": encode(photograph("RGB"), "JPEG"),
        "jpeg progressive": encode(photograph("RGB"), "JPEG", progressive=True, quality=40),
        "jpeg grey": encode(photograph("L"), "JPEG"),
        "jpeg turned": encode(photograph("RGB"), "JPEG", exif=turned),
        "jpeg turned by xmp": encode(photograph("RGB"), "JPEG", xmp=b'<x tiff:Orientation="8"/>'),
        "cmyk": encode(sheet, "JPEG", quality=90),
        "cmyk progressive": encode(sheet, "JPEG", progressive=True, subsampling="4:2:2"),
        "cmyk turned, restarts": encode(sheet, "JPEG", exif=turned, restart_marker_blocks=2),
        "ycck": bytes(ycck),
        "png 16": encode(Image.fromarray(deep), "PNG"),
        "png transparent": encode(photograph("RGBA"), "PNG"),
        "png grey transparent": encode(photograph("LA"), "PNG"),
        "png palette": encode(flag, "PNG", transparency=1),
        "png bits": encode(photograph("L").convert("1"), "PNG"),
        "png bits transparent": encode(photograph("L").convert("1"), "PNG", transparency=1),
        "png turned": encode(photograph("RGB"), "PNG", exif=turned),
        "gif": encode(photograph("RGB").quantize(60), "GIF"),
        "gif transparent": encode(cut_out, "GIF"),
        "webp": encode(photograph("RGB"), "WEBP", quality=60, exif=turned),
        "bmp": encode(photograph("RGB"), "BMP"),
    }


def decode_with_pillow(content: bytes, how: Decoding) -> np.ndarray:
    """Return the pixels that Pillow decodes, before they are resized."""

    def use(image: decode.Picture) -> np.ndarray:
        opened = decode._colours(image, how) if isinstance(image, decode.Stack) else image
        return np.asarray(decode._fitted(opened, how, False))

    with patch.object(decode.ImageOps, "pad", lambda image, *_: image):
        pixels = decode.read_image("file", content, use)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


DECODE = """async ([files, how]) => {
  const { decodeFile } = await import("/page/files.js"), { prepared } = await import("/page/pixels.js");
  const answers = [];
  for (const text of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    try {
      const { width, height, data } = prepared(await decodeFile(new Blob([bytes])), how, false);
      answers.push({ width, height, data: btoa(String.fromCharCode(...data)) });
    } catch (error) {
      answers.push(`${error.constructor.name} ${error.message}`);
    }
  }
  return answers;
}"""


@pytest.fixture(scope="module")
def decoded(tab: Tab) -> Iterator[Callable[..., list[Any]]]:
    """A function that decodes files with the page's modules, served one by one."""
    with serve_folder(Path(runtime_js.__file__).parent) as url:
        tab.go(url + "page/words.js")

        def run(files: list[bytes], how: Decoding) -> list[Any]:
            texts = [base64.b64encode(content).decode() for content in files]
            settings = {key: getattr(how, key) for key in ("channels", "background", "low", "high")}
            return list(tab.value(DECODE, [texts, settings]))

        yield run


@pytest.mark.parametrize(
    "how", [Decoding(3, 8, background="white"), Decoding(1, 8, low=900, high=41000.5)], ids=["colour", "grey"]
)
def test_pixels_match_pillow(decoded: Callable[..., list[Any]], how: Decoding) -> None:
    files = image_kinds()
    for name, answer in zip(files, decoded(list(files.values()), how), strict=True):
        wanted = decode_with_pillow(files[name], how)
        assert not isinstance(answer, str), (name, answer)
        pixels = np.frombuffer(base64.b64decode(answer["data"]), np.uint8)
        assert np.array_equal(pixels.reshape(how.channels, answer["height"], answer["width"]), wanted), name


def test_files_that_could_be_decoded_differently_are_refused(decoded: Callable[..., list[Any]]) -> None:
    whole = encode(photograph("RGB", 300, 200), "JPEG")
    header = encode(photograph("RGB"), "PNG")
    bomb = header[:16] + (60000).to_bytes(4) * 2 + header[24:]
    cmyk = encode(photograph("CMYK"), "JPEG")
    files = [
        whole[: len(whole) // 2], b"", b"text", header[:200], bomb, header[:60] + b"\0" * 40 + header[100:],
        cmyk[:900] + b"\xff\xd9", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM",
        encode(photograph("RGBA"), "WEBP", lossless=True),
        encode(photograph("RGB"), "WEBP", save_all=True, append_images=[photograph("RGB").rotate(180)]),
        encode(photograph("RGB"), "TIFF"), encode(photograph("RGBA"), "BMP"), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]  # fmt: skip
    for answer in decoded(files, Decoding(3, 8)):
        assert isinstance(answer, str), answer
        assert answer.startswith("Unreadable web_"), answer


# The page

CLASSIFY = """async (texts) => {
  const answers = [];
  for (const text of texts) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    answers.push(await window.cnnlab.classify(new Blob([bytes])));
  }
  return answers;
}"""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def page_answers(tab: Tab, files: list[bytes]) -> list[dict[str, float]]:
    """Return the probabilities of the classes that the page computes for each file."""
    found = tab.value(CLASSIFY, [base64.b64encode(content).decode() for content in files])
    return [{one["label"]: one["probability"] for one in answer} for answer in found]


def wait_until_ready(tab: Tab, text: str = "Ready") -> None:
    tab.page.wait_for_selector(f'#status:has-text("{text}")', timeout=60_000)


def choose_file(tab: Tab, content: bytes) -> None:
    tab.page.set_input_files("#try-file", {"name": "x", "mimeType": "image/png", "buffer": content})


def check_accessible(tab: Tab) -> None:
    """Check the page with axe-core, narrow in dark mode and wide in light mode."""
    axe = (
        pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install --group dev").Axe().axe_script
    )
    tab.value(axe)
    for width, theme in ((390, "dark"), (1440, "light")):
        tab.page.set_viewport_size({"width": width, "height": 900})
        tab.page.emulate_media(color_scheme=theme)
        assert tab.value("() => document.documentElement.scrollWidth <= innerWidth"), width
        found = tab.value("(rules) => axe.run({ runOnly: rules, resultTypes: ['violations'] })", RULES)["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == [], (width, theme)


def test_the_page_gives_the_same_answers_as_the_run(
    tab: Tab, runtime: WebRuntime, digits_run: Run, exported: Path, tmp_path: Path
) -> None:
    """For 100 images and each kind of file: the same class, probabilities within 1e-4. The page also works offline."""
    model = onnx.load(exported)
    assert not add_map(model)
    found = open_exported(exported, threads=1)
    write_folder(WebPage(exported.read_bytes(), json.dumps(found.description)), runtime, tmp_path / "page")
    pictures = validation_images(digits_run).images[:100, 0].numpy()
    files = [encode(Image.fromarray(pixels), "PNG") for pixels in pictures] + list(image_kinds().values())
    with decode.bombs_refused():
        wanted = np.concatenate([found.probabilities(decode.decode("x", found.decoding, c)[None]) for c in files])
    said: list[str] = []
    tab.page.on("console", lambda message: said.append(message.text))
    with serve_folder(tmp_path / "page") as url:
        tab.go(url)
        wait_until_ready(tab, "works offline")
        mine = page_answers(tab, files)
        p = np.array([[answer[name] for name in found.classes] for answer in mine])
        assert np.abs(p - wanted).max() < 1e-4
        assert [next(iter(answer)) for answer in mine] == [found.classes[k] for k in wanted.argmax(1)]
        assert {address.split("/")[2] for address in tab.requests} == {url.split("/")[2]}
    tab.page.context.set_offline(True)  # this cuts off the server, too
    try:
        tab.page.reload()
        wait_until_ready(tab)
        assert page_answers(tab, files[:1]) == mine[:1]
        tab.go(f"{url}index.html?x=1")  # the page under another URL
        wait_until_ready(tab)
    finally:
        tab.page.context.set_offline(False)
    assert (said, tab.errors) == ([], [])


HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "e\u202egnp.exe\n", "x" * 10_000]


def small_network(pooled: bool = True, half: bool = False) -> bytes:
    """Return a network with random weights for one channel: convolution, global pooling, a linear layer.

    half: compute in float16 between the input and the softmax.
    """
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.normal(0, 0.4, (6, 1, 3, 3)), "v": rng.normal(0, 2, (len(HOSTILE), 6)), "b": np.zeros(len(HOSTILE)),
        "255": np.array(255), "t": np.array(0.99),
    }  # fmt: skip
    inner = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    floats = [numpy_helper.from_array(value.astype(np.float32 if name == "t" else inner[0]), name)
              for name, value in weights.items()]  # fmt: skip
    axes = [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(np.array([1]), "one")]
    kinds = {"B": TensorProto.FLOAT, "N": TensorProto.BOOL}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], to=inner[1]),
        helper.make_node("Div", ["f", "255"], ["x"]),
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["maps"]),
        helper.make_node("ReduceMean" if pooled else "ReduceMax", ["maps", "axes"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "b"], ["inner logits"], transB=1),
        helper.make_node("Cast", ["inner logits"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("ReduceMax", ["probabilities", "one"], ["most"], keepdims=0),
        helper.make_node("Less", ["most", "t"], ["none_of_these"]),
    ]
    outputs = [("probabilities", kinds["B"], ["B", "K"]), ("none_of_these", kinds["N"], ["B"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 1, "H", "W"])],
        [helper.make_tensor_value_info(*output) for output in outputs], [*floats, *axes],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert add_map(model) is pooled
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("half", [False, True])
def test_the_mean_of_each_class_map_is_its_logit(half: bool) -> None:
    session = onnxruntime.InferenceSession(small_network(half=half))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 20, 14), np.uint8)
    p, maps = session.run(["probabilities", "map"], {"pixels": pixels})
    logits = maps.mean((2, 3))  # the mean of a class's map is its logit
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), p, atol=1e-2 if half else 1e-5)
    small_network(pooled=False)


@pytest.fixture(scope="module")
def hostile() -> WebPage:
    layer = torch.nn.Conv2d(1, 7, 3)
    about = {
        **ABOUT,
        "classes": HOSTILE,
        "threshold": 0.99,
        "run": HOSTILE[0],
        "published_weights": {"licence": HOSTILE[1]},
    }
    checked = {"split": "validation", "images": 360, "accuracy": 0.9, "difference": 3e-7, "changed": 0}
    return WebPage(small_network(), json.dumps(about), filters_of(layer), checked, level=0.8)


def test_page_is_accessible(tab: Tab, runtime: WebRuntime, hostile: WebPage, tmp_path: Path) -> None:
    """With a drawing and the map, in both languages and widths. Hostile names do no harm."""
    write_folder(hostile, runtime, tmp_path / "page")
    said: list[str] = []
    tab.page.on("console", lambda message: said.append(message.text))
    tab.page.set_viewport_size({"width": 1440, "height": 900})
    with serve_folder(tmp_path / "page") as url:
        tab.go(url)
        wait_until_ready(tab)
        box = tab.page.locator(".pad").bounding_box()
        assert box is not None
        tab.page.mouse.move(box["x"] + 60, box["y"] + 60)
        tab.page.mouse.down()
        tab.page.mouse.move(box["x"] + 200, box["y"] + 190, steps=3)
        tab.page.mouse.up()
        tab.page.wait_for_selector(".answer .none")
        assert tab.page.locator(".answer canvas").count() == 2
        before = tab.page.inner_text(".answer .bars")
        tab.page.locator(".pad").press("Shift+ArrowLeft")  # drawing with the keyboard
        tab.page.wait_for_function(
            "(before) => document.querySelector('.answer .bars').innerText !== before", arg=before
        )
        tab.page.locator(".answer select").select_option(index=1)
        tab.page.click(".language")
        assert tab.value("() => document.documentElement.lang") == "zh-CN"
        assert tab.page.locator(".answer canvas").count() == 2
        check_accessible(tab)
        choose_file(tab, b"no image")
        tab.page.wait_for_selector("#status.none")
        assert tab.page.locator(".answer").count() == 0
        assert tab.value("() => document.querySelector('img[src=x]') === null")
    assert (said, tab.errors) == ([], [])


HOLD = """() => {
  const read = Blob.prototype.arrayBuffer;
  let first = true;
  Blob.prototype.arrayBuffer = async function () {
    if (first) {
      first = false;
      await new Promise((go) => { window.go = go; });
    }
    return read.call(this);
  };
}"""


def test_a_slow_file_does_not_replace_a_later_one(
    tab: Tab, runtime: WebRuntime, hostile: WebPage, tmp_path: Path
) -> None:
    write_folder(hostile, runtime, tmp_path / "page")
    with serve_folder(tmp_path / "page") as url:
        tab.go(url)
        wait_until_ready(tab)
        tab.value(HOLD)
        choose_file(tab, b"no image")
        choose_file(tab, encode(photograph("L"), "PNG"))
        tab.page.wait_for_selector(".answer .none")
        tab.value("() => { window.go(); return new Promise((go) => setTimeout(go, 200)); }")
        assert tab.page.locator(".answer").count() == 1
        assert tab.page.locator("#status.none").count() == 0


def test_a_single_file_works_without_a_server(tab: Tab, runtime: WebRuntime, hostile: WebPage, tmp_path: Path) -> None:
    """The single file works without a server."""
    path = tmp_path / "page.html"
    assert write_file(hostile, runtime, path) == path.stat().st_size < 6_000_000
    content = encode(photograph("L"), "PNG")
    tab.go(path.as_uri())
    wait_until_ready(tab)
    (answer,) = page_answers(tab, [content])
    pixels = np.asarray(photograph("L"))[None, None]
    (wanted,) = onnxruntime.InferenceSession(small_network()).run(["probabilities"], {"pixels": pixels})
    assert np.allclose([answer[name] for name in HOSTILE], wanted[0], atol=1e-5)
    assert tab.errors == []
    assert not [address for address in tab.requests if not address.startswith(("file:", "blob:"))]


def test_the_command_writes_a_page_and_a_single_file(
    digits_run: Run,
    converted_once: None,
    exported: Path,
    cnnlab: Command,
    tmp_path: Path,
    small: dict[str, bytes],
) -> None:
    package, page, one = write_package(tmp_path / "ort.tgz", small), tmp_path / "page", tmp_path / "page.html"
    web = ["export", digits_run.path, "--to", "web", "--threads", 1]
    for options, text in (([], page), (["--single-file"], one)):
        answer = cnnlab(*web, "--runtime", package, "-o", text, *options)
        assert answer.returncode == 0, answer.stderr
        assert "validation images" in answer.stdout
        assert "--force" in one_line_error(cnnlab(*web, "--runtime", package, "-o", text, *options))
    found = re.search(r'id="payload">(.*?)</script>', (page / "index.html").read_text())
    assert found is not None
    payload = json.loads(found[1])
    assert payload["classes"] == digits_run.classes
    assert payload["light"]  # digits are bright on black
    assert payload["drawable"]
    assert payload["filters"]["count"] == 6
    assert payload["checked"]["images"] == len(validation_images(digits_run))
    assert payload["checked"]["accuracy"] > 0.8
    assert payload["checked"]["changed"] == 0
    assert open_exported(next(page.glob("network-*.onnx")), threads=1).classes == digits_run.classes
    assert "web" in one_line_error(cnnlab("export", digits_run.path, "--single-file", "-o", tmp_path / "n.onnx"))
    assert "web" in one_line_error(cnnlab("export", digits_run.path, "--to", "wep"))
    for other in (exported, tmp_path / "missing"):
        assert "npm pack" in one_line_error(cnnlab(*web, "--runtime", other, "-o", tmp_path / "new"))
    assert ".html" in one_line_error(cnnlab(*web, "--runtime", package, "--single-file", "-o", tmp_path / "one"))
    answer = cnnlab(*web, "--runtime", package, "-o", page, "--force")
    assert answer.returncode == 0, answer.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"ort.tgz", "page", "page.html"}  # nothing of the earlier one
    (page / "index.html").write_text("mine")
    assert "-o" in one_line_error(cnnlab(*web, "--runtime", package, "-o", page, "--force"))
