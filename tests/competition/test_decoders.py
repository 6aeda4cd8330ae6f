"""Decoding processes: errors, and that they end with the process that started them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cnnlab.competition.decoders import Decoders
from cnnlab.io.decode import Decoding
from cnnlab.io.decode_jobs import Job
from cnnlab.io.errors import CnnlabError


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (20, 20), 7).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("processes", [0, 1])
def test_an_unwritable_file_is_named(tmp_path: Path, processes: int) -> None:
    job = Job(str(tmp_path / "none.npy"), 0, Decoding(1, 20), True, False)
    with Decoders(processes) as decoders:
        decoders.add(job, 0, "a", png())
        with pytest.raises(CnnlabError, match=r"none\.npy"):
            decoders.finish(job)


@pytest.mark.skipif(os.name != "posix", reason="exit codes of signals")
def test_a_dead_decoding_process_is_an_error(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "a.npy"), 0, Decoding(1, 20), True, False)
    with Decoders(1) as decoders:
        decoders._processes[0].kill()
        decoders.add(job, 0, "a", png())
        with pytest.raises(CnnlabError, match=r"exit code -9.*--workers 1"):
            decoders.finish(job)


def test_decoding_imports_no_torch() -> None:
    code = "import sys, cnnlab.io.decode_jobs; assert not {'torch', 'matplotlib', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_decoding_processes_end_with_a_killed_parent() -> None:
    code = (
        "import os, signal; from cnnlab.competition.decoders import Decoders\n"
        "decoders = Decoders(1); print(decoders._processes[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the decoding process is still running")
