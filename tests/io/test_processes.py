"""Helper processes."""

from __future__ import annotations

import subprocess
import sys


def test_an_answer_stream_carries_only_answers() -> None:
    code = (
        "import os, sys; from cnnlab.io.processes import answer_stream\n"
        "answers = answer_stream()\n"
        "os.write(1, b'noise'); print('noise', flush=True); os.write(2, bytes(1 << 20))\n"  # more than fits into a pipe
        "answers.write(sys.stdin.buffer.readline()); answers.close()"
    )
    found = subprocess.run([sys.executable, "-c", code], input=b"answer\n", capture_output=True, timeout=60, check=True)
    assert (found.stdout, found.stderr) == (b"answer\n", b"")
