"""Python helper processes, which end when their input pipe closes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO


def start_module(name: str) -> subprocess.Popen[bytes]:
    """Start `python -m NAME` with pipes as its input and output. Raise OSError.

    Not through multiprocessing, which would run the caller's script again. The process ends when its input does,
    however this process ends.
    """
    if not sys.executable:  # an interpreter inside another program
        raise OSError("no Python program to start")
    # -P and PYTHONPATH: modules in the working folder must not be imported.
    source = str(Path(__file__).parents[2])
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # A process group of its own, so that Ctrl-C reaches only this process.
    return subprocess.Popen(  # noqa: S603 - Python itself
        [sys.executable, "-P", "-m", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        process_group=0 if os.name == "posix" else None,
        creationflags=0 if os.name == "posix" else 0x200,  # CREATE_NEW_PROCESS_GROUP
    )


def answer_stream() -> IO[bytes]:
    """Return the output stream of a process of `start_module`, for its answers alone. Call it once.

    All other output is dropped from now on: that of decoders in C would mix with the answers, or fill a pipe that is
    never read.
    """
    answers, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return os.fdopen(answers, "wb")
