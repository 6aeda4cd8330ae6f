"""`cnnlab ui`: a local page for the runs."""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from cnnlab.cli.options import DataDir, RunsDir, Threads
from cnnlab.io.errors import needs_extra
from cnnlab.io.http import host_headers, listen
from cnnlab.io.text import echo


def ui(
    runs_dir: RunsDir = Path("runs"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine. Default: a free one.", show_default=False)
    ] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    data_dir: DataDir = None,
    threads: Threads = None,
) -> None:
    """Open a page to watch, compare, try and train, on this machine only.

    It shows all runs of the folder, including those that other processes train.
    The printed address holds a token: anyone who knows it can start a training.
    """
    with needs_extra("ui", "starlette", "uvicorn", "anyio"):
        import uvicorn

        from cnnlab.app.server import Settings, make_app

    listener = listen("127.0.0.1", port)
    listener.listen()  # before the browser opens
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    hosts = host_headers(port, "127.0.0.1", "localhost")
    app = make_app(Settings(runs_dir.absolute(), token, hosts, data_dir, threads))
    address = f"http://127.0.0.1:{port}/?token={token}"
    echo(f"page: {address} (Ctrl-C stops it; trainings continue)", flush=True)
    if open_browser:
        import webbrowser

        webbrowser.open(address)

    threading.Thread(target=app.state.prepare, daemon=True).start()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.ended.set()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
    try:
        with suppress(KeyboardInterrupt):
            Server(config).run(sockets=[listener])
    finally:
        app.state.searches.end()
