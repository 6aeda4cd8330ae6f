"""The page's server: JSON about runs, events while they change, and the modules that draw them in the browser."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cnnlab import __version__
from cnnlab.app.browsing import Browser
from cnnlab.app.guard import Guard
from cnnlab.app.listing import Runs, Signature
from cnnlab.app.processes import Trainings
from cnnlab.app.searching import Searches
from cnnlab.app.trying import ImageTester
from cnnlab.defaults import choose_recipe
from cnnlab.inspect.report import MOST_RUNS, live_report, page_report
from cnnlab.inspect.report.page import PAGE
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.text import escape
from cnnlab.models import MODELS
from cnnlab.recipe import SETTINGS, Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training.runs import open_run

OWN = Path(__file__).parent / "page"
LARGEST = 32 << 20  # bytes of an uploaded image
_LARGEST_JSON = 1 << 16
_EVERY = 0.5  # seconds between two checks of the run folders
_ALIVE = 30  # checks without changes before a comment is sent, which reveals a closed connection
_TYPES = {".js": "text/javascript", ".css": "text/css"}


@dataclass(frozen=True)
class Settings:
    """The arguments of the server. hosts: see `Guard`."""

    runs_dir: Path
    token: str
    hosts: tuple[str, ...]
    data_dir: Path | None = None
    threads: int | None = None


class Pages:
    """The server's answers. Only one run is evaluated at a time, since PyTorch's settings are global to the process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runs = Runs(settings.runs_dir)
        self.trainings = Trainings(settings.runs_dir, settings.data_dir, settings.threads)
        self.tester = ImageTester(self.runs, settings.data_dir, settings.threads)
        self.browser = Browser(settings.data_dir)
        self.searches = Searches(settings.data_dir)
        self.ended = threading.Event()
        self._reports: dict[tuple[Any, ...], bytes] = {}

    def prepare(self) -> None:
        """Do what the first requests would otherwise wait for: read the runs, import torchvision."""
        with suppress(OSError):  # the page itself shows the error
            self.runs.rows()
        import_module("torchvision")  # takes 2 s

    def list_runs(self, _: Request) -> Any:
        """Return a row for each run, the series, and the trainings that were started from here."""
        return {"runs": self.runs.rows(), "series": self.runs.series(), "started": self.trainings.states(),
                "folder": str(self.runs.folder)}  # fmt: skip

    def report(self, request: Request) -> Any:
        """Return the payload of a report on the runs named in `run`; with `live`, without evaluating them.

        The name of a series stands for all its runs.
        """
        members: dict[str, Path] = {}
        for name in request.query_params.getlist("run"):
            members |= self.runs.members(name)
        names = list(members)
        if not names:
            raise CnnlabError("no run to report; name one")
        if len(names) > MOST_RUNS:
            raise CnnlabError(
                f"{len(names)} runs are too many for one page; choose at most {MOST_RUNS} in the list of runs"
            )
        chosen = [open_run(members[name]) for name in names]
        if request.query_params.get("live"):
            return live_report(chosen).payload
        signatures = self.runs.signatures()
        key = tuple((name, signatures.get(name)) for name in names)
        with self.tester.lock:
            if key not in self._reports:
                made = page_report(chosen, self.settings.data_dir, self.settings.threads)
                whole = json.dumps(made.payload, allow_nan=False).encode()
                if any(run["missing"] for run in made.payload["runs"]):
                    return whole  # not kept: the images may be back at the next request
                # The evaluation itself is recorded in the run's folder, which changes its signature.
                signatures = self.runs.signatures()
                key = tuple((name, signatures.get(name)) for name in names)
                while len(self._reports) > 4:
                    self._reports.pop(next(iter(self._reports)))
                self._reports[key] = whole
            return self._reports[key]

    def recipes(self, _: Request) -> Any:
        """Return the recipes, models and settings, from which the page builds a form."""
        return {
            "recipes": {name: recipe.to_dict() for name, recipe in RECIPES.items()},
            "models": list(MODELS),
            "settings": [
                {"name": f.name, "default": f.default, "type": str(f.type), **dict(SETTINGS[f.name].metadata)}
                for f in fields(Recipe)
                if f.name not in ("name", "model", "data")
            ],
        }

    def recipe(self, request: Request) -> Any:
        """Return the recipe that a training with these arguments would start from."""
        q = request.query_params
        return choose_recipe(
            model=q.get("model") or None, data=q.get("data") or None, recipe=q.get("recipe") or None
        ).to_dict()

    def browse(self, request: Request) -> Any:
        """Return the summary of a source; with `split`, some of its images."""
        q = request.query_params
        if "split" not in q:
            return self.browser.summary(q.get("source", ""))
        k = _number(q["class"]) if q.get("class") else None
        start, count = _number(q.get("start", "0")), _number(q.get("count", "60"))
        return self.browser.images(q.get("source", ""), q["split"], k, q.get("group"), start, count)

    async def search(self, request: Request) -> Any:
        """Start a search for duplicates in a source, or for suspect labels with a run. Return its number."""
        wanted = await _json(request)
        kind, what = str(wanted.get("kind")), str(wanted.get("what"))
        if kind == "suspects":
            what = str(await run_in_threadpool(self.runs.place, what))
        return {"search": await run_in_threadpool(self.searches.start, kind, what)}

    def found(self, request: Request) -> Any:
        """Return the state of a search; once it is done, also some of the rows that it found, with pictures."""
        q = request.query_params
        search = self.searches.get(_number(q.get("search", "")))
        found = search.found()
        if found is None:
            return {"done": False, "seconds": search.seconds}
        start = _number(q.get("start", "0"))
        rows = found["suspects" if search.kind == "suspects" else search.kind]
        some = rows[start : start + min(_number(q.get("count", "30")), 100)]
        wanted = [(None, row["path"]) for row in some] if search.kind == "suspects" else [
            one for row in some for one in zip(row["parts"], row["ids"], strict=True)
        ]  # fmt: skip
        about = {key: found[key] for key in ("images", "counts", "threshold", "out_of_fold") if key in found}
        return {"done": True, "total": len(rows), "start": start, "rows": some, **about,
                "pictures": self.browser.pictures(q.get("source", ""), wanted)}  # fmt: skip

    async def train(self, request: Request) -> Any:
        """Start a training."""
        wanted = await _json(request)
        return {"name": await run_in_threadpool(self.trainings.start, wanted)}

    async def resume(self, request: Request) -> Any:
        """Continue an interrupted run."""
        run = await run_in_threadpool(self.runs.open, str((await _json(request)).get("run")))
        await run_in_threadpool(self.trainings.resume, self._name(run.path))
        return {}

    async def stop(self, request: Request) -> Any:
        """Interrupt a run."""
        run = await run_in_threadpool(self.runs.open, str((await _json(request)).get("run")))
        await run_in_threadpool(self.trainings.stop, self._name(run.path))
        return {}

    async def try_image(self, request: Request) -> Any:
        """Classify the image in the body with the run `run`; with `nearest`, return the nearest training images."""
        content = await _body(request, LARGEST)
        q = request.query_params
        return await run_in_threadpool(
            lambda: self.tester.classify(q.get("run", ""), content, nearest=bool(q.get("nearest")))
        )

    async def events(self, request: Request) -> Response:
        """Stream the names of runs that change; the first event is empty."""
        return StreamingResponse(self._changes(request), media_type="text/event-stream")

    async def _changes(self, request: Request) -> AsyncIterator[str]:
        before: dict[str, Signature] = await run_in_threadpool(self.runs.signatures)
        codes = self.trainings.codes()
        yield "data: []\n\n"
        quiet = 0
        while not self.ended.is_set() and not await request.is_disconnected():
            await asyncio.sleep(_EVERY)
            now = await run_in_threadpool(self.runs.signatures)
            now_codes = self.trainings.codes()
            changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
            quiet += 1
            if changed or codes != now_codes:
                yield f"data: {json.dumps(changed)}\n\n"
                quiet = 0
            elif quiet >= _ALIVE:
                yield ": nothing new\n\n"
                quiet = 0
            before, codes = now, now_codes

    def _name(self, path: Path) -> str:
        return path.relative_to(self.runs.folder).as_posix()


def make_app(settings: Settings) -> Starlette:
    """Return the application.

    `app.state.ended.set()` ends the event streams, which would otherwise keep the server alive. `app.state.prepare()`
    makes the first pages faster; run it in a thread.
    """
    pages = Pages(settings)

    def get(path: str, answer: Callable[[Request], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _answered(lambda: run_in_threadpool(answer, request))

        return Route(path, endpoint, methods=["GET"])

    def post(path: str, answer: Callable[[Request], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _answered(lambda: answer(request))

        return Route(path, endpoint, methods=["POST"])

    app = Starlette(
        routes=[
            Route("/", _index),
            Route("/static/{room}/{name}", _static),
            get("/api/runs", pages.list_runs),
            get("/api/report", pages.report),
            get("/api/recipes", pages.recipes),
            get("/api/recipe", pages.recipe),
            get("/api/data", pages.browse),
            get("/api/found", pages.found),
            post("/api/search", pages.search),
            Route("/api/events", pages.events),
            post("/api/train", pages.train),
            post("/api/resume", pages.resume),
            post("/api/stop", pages.stop),
            post("/api/try", pages.try_image),
        ],
        middleware=[Middleware(Guard, token=settings.token, hosts=settings.hosts)],
    )
    app.state.ended = pages.ended
    app.state.prepare = pages.prepare
    app.state.searches = pages.searches
    return app


async def _answered(answer: Callable[[], Any]) -> Response:
    """Return the answer, or the error's message, as JSON."""
    try:
        found = await answer()
    except CnnlabError as error:
        return JSONResponse({"error": str(error)}, 400)
    except OSError as error:  # such as a folder of runs without read permission
        where = f"{escape(str(error.filename))}: " if error.filename else ""
        return JSONResponse({"error": f"{where}{reason(error)}"}, 500)
    return Response(found, media_type="application/json") if isinstance(found, bytes) else JSONResponse(found)


async def _index(_: Request) -> Response:
    text = (OWN / "index.html").read_text(encoding="utf-8").replace("{{VERSION}}", __version__)
    return Response(text, media_type="text/html")


async def _static(request: Request) -> Response:
    """Return a module or a style sheet of this page or of the report."""
    folder = {"app": OWN, "report": PAGE}.get(request.path_params["room"])
    names = {p.name: p for p in folder.iterdir() if p.suffix in _TYPES} if folder else {}
    file = names.get(request.path_params["name"])
    return FileResponse(file, media_type=_TYPES[file.suffix]) if file else Response("not found", 404)


async def _body(request: Request, largest: int) -> bytes:
    """Return the body, at most `largest` bytes of it. Raise HTTPException for more."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > largest:
            raise HTTPException(413, f"at most {largest >> 10:,} KiB are accepted")
    return bytes(content)


async def _json(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await _body(request, _LARGEST_JSON))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CnnlabError("the request is not a JSON object")
    return found


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise CnnlabError(f"{text[:40]!r} is not the number of an image or class")
    return int(text)
