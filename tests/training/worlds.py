"""Calls of a function in several processes that are connected as by torchrun."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = "killed"


def _one(rank: int, size: int, port: int, answer: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CNNLAB_TIMEOUT": "60",
                   "TORCHELASTIC_RUN_ID": "job"}  # fmt: skip
    os.chdir(answer.parent)
    try:
        found = call(*args)
    except BaseException as error:
        found = error
    answer.write_bytes(pickle.dumps(found))


def run_processes(forks: Any, size: int, call: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `call(*args)` in each of `size` processes. Return the results: a value, the error raised, or KILLED.

    call: a function of a module. forks: the fixture of that name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = [Path.cwd() / f"answer-{rank}" for rank in range(size)]
    for answer in answers:
        answer.unlink(missing_ok=True)
    processes = [
        forks.Process(target=_one, args=(rank, size, port, answer, call, args)) for rank, answer in enumerate(answers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [pickle.loads(answer.read_bytes()) if answer.exists() else KILLED for answer in answers]
