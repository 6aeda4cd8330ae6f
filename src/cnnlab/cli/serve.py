"""`cnnlab serve`: a service over HTTP that classifies images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import RunsDir
from cnnlab.io.errors import CnnlabError, needs_extra
from cnnlab.io.http import host_in_url, is_loopback, listen
from cnnlab.io.text import echo, plural

_LIMITS = "Limits"
_TOKEN = "CNNLAB_TOKEN"  # noqa: S105 - the variable's name


def serve(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_ONNX", help="An .onnx file from `cnnlab export`, or a run, which is exported first."
        ),
    ],
    host: Annotated[str, typer.Option(help="Name or address to listen on. Default: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            help="Requests must send this as Authorization: Bearer TOKEN. Default: $CNNLAB_TOKEN, which other "
            "users of the machine cannot see.",
            show_default=False,
        ),
    ] = None,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Answer everyone who reaches the port, for use behind a proxy that checks."),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads of onnxruntime. Default: one per core.", show_default=False),
    ] = None,
    log: Annotated[
        str, typer.Option(help="json or text: format of the log, one line per request on standard error.")
    ] = "json",
    max_batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Images that the network takes at once.", rich_help_panel=_LIMITS)
    ] = 32,
    max_wait: Annotated[
        float,
        typer.Option(min=0, max=1000, help="Milliseconds that a batch waits for more images.", rich_help_panel=_LIMITS),
    ] = 0.0,
    max_queue: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Images accepted and not yet answered.", rich_help_panel=_LIMITS),
    ] = 256,
    max_images: Annotated[
        int, typer.Option(min=1, max=100_000, help="Images in a request.", rich_help_panel=_LIMITS)
    ] = 64,
    max_body: Annotated[
        float, typer.Option(min=0.001, max=1024, help="MiB in a request.", rich_help_panel=_LIMITS)
    ] = 32.0,
    max_pixels: Annotated[
        float, typer.Option(min=0.001, max=1000, help="Millions of pixels in an image.", rich_help_panel=_LIMITS)
    ] = 50.0,
    max_connections: Annotated[
        int, typer.Option(min=1, max=10_000, help="Open connections.", rich_help_panel=_LIMITS)
    ] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds that a request may take.", rich_help_panel=_LIMITS)
    ] = 30.0,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Run a service that classifies images over HTTP.

    POST one image to /predict, or several as multipart/form-data; GET / explains
    how. On SIGTERM or Ctrl-C it answers the accepted requests, then exits.
    """
    with needs_extra("serve", "starlette", "uvicorn", "anyio", "h11", "onnxruntime"):
        from cnnlab.device.cgroups import available_cores
        from cnnlab.serve.log import Log
        from cnnlab.serve.model import open_model
        from cnnlab.serve.server import make_server, try_out
        from cnnlab.serve.server import serve as run
        from cnnlab.serve.settings import Limits

    secret = _secret(token, no_token)
    limits = Limits(
        max_batch=max_batch, max_wait=max_wait, max_queue=max_queue, images=max_images, body=int(max_body * 2**20),
        bodies=max(256 << 20, int(max_body * 2**21)), pixels=int(max_pixels * 1e6), connections=max_connections,
        seconds=timeout, header_seconds=min(10.0, timeout),
    )  # fmt: skip
    lines = Log(log)
    listener = listen(host, port)
    try:
        if secret is None and not no_token and not is_loopback(listener):
            raise CnnlabError(
                f"--host {host} opens the service to other machines: set {_TOKEN}, or give --no-token if a proxy in "
                "front of it decides who may use it"
            )
        cores = available_cores()
        model = open_model(what, runs_dir, threads or cores)
        try_out(model, limits)
        name = Path(what).absolute().name
        server = make_server(model, listener, limits=limits, log=lines, name=name, token=secret, host=host,
                             check_host=not no_token, decoders=cores)  # fmt: skip
        address = f"http://{host_in_url(host)}:{listener.getsockname()[1]}"
        text = f"serving {name} ({plural(len(model.classes), 'class')}) at {address}"
        server.on_start = lambda: echo(text, flush=True)
        run(server, listener, lines)
    finally:
        listener.close()
    echo("stopped")


def _secret(token: str | None, no_token: bool) -> str | None:
    """Return the token from the option or else the environment. Raise CnnlabError if no header could carry it."""
    where = "--token" if token is not None else _TOKEN
    found = token if token is not None else os.environ.get(_TOKEN)
    if found is None:
        return None
    if no_token:
        raise CnnlabError(f"{where} and --no-token contradict each other; give one of them")
    if not found or not found.isascii() or not found.isprintable() or " " in found:
        raise CnnlabError(f"{where} must be one or more ASCII letters, digits or punctuation marks, without spaces")
    return found
