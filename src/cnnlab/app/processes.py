"""Trainings started from the page. Each is a process that continues when the page and its server are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnlab.defaults import choose_recipe
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.models import MODELS
from cnnlab.models.own import is_file
from cnnlab.training.folders import check_free, free_name
from cnnlab.training.locks import training_pid

LOGS = ".logs"
_ENDING = 2.0  # seconds that a stopped process takes to end
_TAIL = 4000  # bytes of a log that the page shows


class Trainings:
    """The processes that this server has started, by run name. Their output is in RUNS_DIR/.logs."""

    def __init__(self, folder: Path, data_dir: Path | None, threads: int | None) -> None:
        self.folder, self.data_dir, self.threads = folder, data_dir, threads
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, wanted: dict[str, Any]) -> str:
        """Start a training and return the name of its run. Raise CnnlabError for invalid arguments.

        wanted: the texts `data`, `recipe`, `model` and `name`, which may be empty; `settings`, a list of `key=value`.
        """
        given = {key: str(wanted.get(key) or "") for key in ("data", "recipe", "model", "name")}
        settings = [str(text) for text in wanted.get("settings") or ()]
        model = given["model"]
        known = model in MODELS or model.startswith(("timm:", "torchvision:", "efficientnet"))
        if model and (not known or is_file(model)):
            raise CnnlabError(
                f"model {model!r}: the page trains networks of `cnnlab list models`, timm: and torchvision:"
            )
        recipe = choose_recipe(
            model=model or None, data=given["data"] or None, recipe=given["recipe"] or None, settings=settings
        )
        options = [word for key in ("data", "recipe", "model") if given[key] for word in (f"--{key}", given[key])]
        options += [word for text in settings for word in ("--set", text)]
        with self._lock:
            name = given["name"] or free_name(self.folder, recipe, self._started)
            check_free(self.folder, name)
            self._run(name, ["train", *options, "--name", name])
        return name

    def resume(self, name: str) -> None:
        """Continue an interrupted run. Raise CnnlabError if it is being trained."""
        with self._lock:
            if training_pid(self.folder / name) is not None:
                raise CnnlabError(f"{name} is being trained; stop it first")
            self._run(name, ["train", "--resume", str(self.folder / name)])

    def stop(self, name: str) -> None:
        """Interrupt a run as Ctrl-C does; it saves its progress. Raise CnnlabError if no process here trains it."""
        process = training_pid(self.folder / name)
        if process is None:
            raise CnnlabError(f"{name} is not being trained on this machine")
        try:
            os.kill(process, signal.SIGINT)
        except OSError as error:
            raise CnnlabError(f"cannot stop process {process}, which trains {name}: {reason(error)}") from error

    def codes(self) -> list[int | None]:
        """Return the exit code of each process, None while it runs."""
        with self._lock:
            return [process.poll() for process in self._started.values()]

    def states(self) -> list[dict[str, Any]]:
        """Return each process's name, exit code (None while it runs) and last output, the latest process first."""
        with self._lock:
            started = list(self._started.items())
        return [
            {"name": name, "code": process.poll(), "output": self._output(name)} for name, process in reversed(started)
        ]

    def _run(self, name: str, words: Sequence[str]) -> None:
        before = self._started.get(name)
        if before is not None:
            with suppress(subprocess.TimeoutExpired):
                before.wait(_ENDING)  # it may have released the run's lock and be about to end
        if before is not None and before.poll() is None:  # it may not have taken the run's lock yet
            raise CnnlabError(f"a process that trains {name} has been started already; wait for it, or stop it")
        where = ["--runs-dir", str(self.folder)] if "--resume" not in words else []
        where += ["--data-dir", str(self.data_dir)] if self.data_dir is not None else []
        where += ["--threads", str(self.threads)] if self.threads is not None else []
        log = self._log(name)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                self._started[name] = subprocess.Popen(  # noqa: S603 the words are options of our own command
                    [sys.executable, "-m", "cnnlab", *words, *where, "--progress", "lines"],
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the server's terminal does not reach it
                )  # fmt: skip
        except OSError as error:
            raise CnnlabError(f"cannot start the training: {reason(error)}") from error

    def _log(self, name: str) -> Path:
        return self.folder / LOGS / f"{name.replace('/', '--')}.log"

    def _output(self, name: str) -> str:
        with suppress(OSError), self._log(name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            return file.read().decode("utf-8", "replace")
        return ""
