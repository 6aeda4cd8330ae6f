"""Calling a function in several processes that are connected as torchrun connects them."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from typing import Any


def _one(rank: int, size: int, port: int, answers: Any, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CNNLAB_TIMEOUT": "60"}  # fmt: skip
    try:
        answer = call(*args)
    except BaseException as error:
        answer = error
    answers.put((rank, pickle.dumps(answer)))  # a queue would share the memory of tensors with a process that has ended


def together(forks: Any, size: int, call: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `call(*args)` returns, or the error that it raises, in each of `size` processes.

    call: a function of a module. forks: the fixture.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = forks.Queue()
    processes = [forks.Process(target=_one, args=(rank, size, port, answers, call, args)) for rank in range(size)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return [pickle.loads(found[rank]) for rank in range(size)]
