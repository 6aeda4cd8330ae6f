"""`cnnlab export --to web`: its files, its pixels beside Pillow's, and the page in Chromium, also without a network."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from browser import Tab, chromium
from cnnlab.export import runtime_js
from cnnlab.export.runtime_js import WebRuntime, web_runtime
from cnnlab.export.web import WebPage, write_file, write_folder
from cnnlab.io import decode
from cnnlab.io.decode import Decoding
from cnnlab.io.errors import CnnlabError

ABOUT: dict[str, Any] = {
    "classes": ["a", "b"], "threshold": 0.0, "run": "r", "network": "n", "parameters": 1,
    "recipe": {"name": "digits", "data": "digits"},
    "preprocessing": {"channels": 1, "native_size": 8, "fit": "pad", "background": "black", "low": 0.0, "high": 0.0},
}  # fmt: skip
FAKE = WebRuntime(b"export {};", b"\0asm")


@contextmanager
def served(folder: Path) -> Iterator[str]:
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


def packed(path: Path, files: dict[str, bytes]) -> Path:
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
    with served(site) as url:
        assert web_runtime(address=url) == WebRuntime(*small.values())
    assert web_runtime(address=url) == WebRuntime(*small.values())  # the server is gone
    for name in small:
        (tmp_path / "cache" / name).unlink()
    (site / runtime_js.WASM).write_bytes(b"evil")
    with served(site) as url, pytest.raises(CnnlabError):
        web_runtime(address=url)
    assert not (tmp_path / "cache" / runtime_js.WASM).exists()


def test_runtime_from_a_package(small: dict[str, bytes], tmp_path: Path) -> None:
    assert web_runtime(packed(tmp_path / "good.tgz", small)) == WebRuntime(*small.values())
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    for name, content in small.items():
        (folder / "dist" / name).write_bytes(content)
    assert web_runtime(folder) == WebRuntime(*small.values())
    other = packed(tmp_path / "other.tgz", {**small, runtime_js.WASM: b"of another version"})
    whole = other.read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.tgz").write_bytes(whole[:30] + b"xxxxxxxx" + whole[38:])
    (tmp_path / "text.tgz").write_text("no package")
    for name in ("other.tgz", "cut.tgz", "damaged.tgz", "text.tgz", "missing.tgz", "cache"):
        with pytest.raises(CnnlabError):
            web_runtime(tmp_path / name)


def test_ci_packs_this_version() -> None:
    text = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert f"onnxruntime-web@{runtime_js.VERSION}" in text


def test_folder_is_replaced_but_never_another(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "page"
    write_folder(WebPage(b"first", ABOUT), FAKE, folder)
    first = {path.name for path in folder.iterdir()}
    write_folder(WebPage(b"second", ABOUT), FAKE, folder)
    second = {path.name for path in folder.iterdir()}
    assert len(first) == len(second) == 8
    assert {name.partition("-")[0] for name in first - second} == {"network"}
    kept = (folder / "worker.js").read_text()
    assert all(f'"./{name}"' in kept for name in second - {"worker.js", "index.html", "onnxruntime-web.LICENSE"})
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    (tmp_path / "file").write_text("")
    for place in (other, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CnnlabError):
            write_folder(WebPage(b"", ABOUT), FAKE, place)
    assert [path.name for path in other.iterdir()] == ["index.html"]


def test_what_no_page_can_hold(tmp_path: Path) -> None:
    many = {**ABOUT, "preprocessing": {**ABOUT["preprocessing"], "channels": 5}}
    with pytest.raises(CnnlabError):
        write_folder(WebPage(b"", many), FAKE, tmp_path / "page")
    noise = np.random.default_rng(0).bytes(1000)
    with patch("cnnlab.export.web.LARGEST_FILE", 1000), pytest.raises(CnnlabError):
        write_file(WebPage(noise, ABOUT), FAKE, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# Pixels


def photograph(mode: str, width: int = 45, height: int = 33) -> Image.Image:
    rng = np.random.default_rng(len(mode) + width)
    channels = Image.new(mode, (1, 1)).getbands()
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / 7 + k) + 30 * np.cos(y / (5 + k)) for k in range(len(channels))]
    pixels = np.clip(np.stack(waves, 2) + rng.normal(0, 20, (height, width, len(channels))), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if len(channels) == 1 else pixels, mode)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def kinds() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.random.default_rng(0).integers(0, 65536, (9, 14)).astype(np.uint16)
    cut_out = photograph("RGBA")
    cut_out.putalpha(cut_out.getchannel("A").point(lambda a: 255 if a > 127 else 0))
    sheet = photograph("CMYK")
    ycck = bytearray(file(sheet, "JPEG", subsampling="4:2:0"))
    ycck[ycck.index(b"Adobe") + 11] = 2
    flag = Image.new("P", (5, 4))
    flag.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 200])
    flag.putdata([n % 3 for n in range(20)])
    return {
        "jpeg": file(photograph("RGB"), "JPEG"),
        "jpeg progressive": file(photograph("RGB"), "JPEG", progressive=True, quality=40),
        "jpeg grey": file(photograph("L"), "JPEG"),
        "jpeg turned": file(photograph("RGB"), "JPEG", exif=turned),
        "jpeg turned by xmp": file(photograph("RGB"), "JPEG", xmp=b'<x tiff:Orientation="8"/>'),
        "cmyk": file(sheet, "JPEG", quality=90),
        "cmyk progressive": file(sheet, "JPEG", progressive=True, subsampling="4:2:2"),
        "cmyk turned, restarts": file(sheet, "JPEG", exif=turned, restart_marker_blocks=2),
        "ycck": bytes(ycck),
        "png 16": file(Image.fromarray(deep), "PNG"),
        "png transparent": file(photograph("RGBA"), "PNG"),
        "png grey transparent": file(photograph("LA"), "PNG"),
        "png palette": file(flag, "PNG", transparency=1),
        "png bits": file(photograph("L").convert("1"), "PNG"),
        "png turned": file(photograph("RGB"), "PNG", exif=turned),
        "gif": file(photograph("RGB").quantize(60), "GIF"),
        "gif transparent": file(cut_out, "GIF"),
        "webp": file(photograph("RGB"), "WEBP", quality=60, exif=turned),
        "bmp": file(photograph("RGB"), "BMP"),
    }


def pillows(content: bytes, how: Decoding) -> np.ndarray:
    """Return the pixels before they are fitted."""

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
    """Decode files by the page's modules, served one by one."""
    with served(Path(runtime_js.__file__).parent) as url:
        tab.go(url + "page/words.js")

        def run(files: list[bytes], how: Decoding) -> list[Any]:
            texts = [base64.b64encode(content).decode() for content in files]
            settings = {key: getattr(how, key) for key in ("channels", "background", "low", "high")}
            return list(tab.value(DECODE, [texts, settings]))

        yield run


@pytest.mark.parametrize(
    "how", [Decoding(3, 8, background="white"), Decoding(1, 8, low=900, high=41000.5)], ids=["colour", "grey"]
)
def test_pixels_are_pillows(decoded: Callable[..., list[Any]], how: Decoding) -> None:
    files = kinds()
    for name, answer in zip(files, decoded(list(files.values()), how), strict=True):
        wanted = pillows(files[name], how)
        assert not isinstance(answer, str), (name, answer)
        pixels = np.frombuffer(base64.b64decode(answer["data"]), np.uint8)
        assert np.array_equal(pixels.reshape(how.channels, answer["height"], answer["width"]), wanted), name


def test_what_could_differ_is_refused(decoded: Callable[..., list[Any]]) -> None:
    whole = file(photograph("RGB", 300, 200), "JPEG")
    header = file(photograph("RGB"), "PNG")
    bomb = header[:16] + (60000).to_bytes(4) * 2 + header[24:]
    cmyk = file(photograph("CMYK"), "JPEG")
    files = [
        whole[: len(whole) // 2], b"", b"text", header[:200], bomb, header[:60] + b"\0" * 40 + header[100:],
        cmyk[:900] + b"\xff\xd9", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM",
        file(photograph("RGBA"), "WEBP", lossless=True),
        file(photograph("RGB"), "WEBP", save_all=True, append_images=[photograph("RGB").rotate(180)]),
        file(photograph("RGB"), "TIFF"), file(photograph("RGBA"), "BMP"), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]  # fmt: skip
    for answer in decoded(files, Decoding(3, 8)):
        assert isinstance(answer, str), answer
        assert answer.startswith("Unreadable web_"), answer
