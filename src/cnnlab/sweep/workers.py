"""Several workers on this machine: processes of the same command, which may also be started by hand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from cnnlab.device.hardware import available_cores, check_threads
from cnnlab.io.errors import CnnlabError, TrainingInterrupted, reason
from cnnlab.io.interrupt import CtrlC
from cnnlab.io.text import plural
from cnnlab.sweep.definition import Sweep
from cnnlab.sweep.worker import Machine

_POLL = 0.1  # seconds between two checks of the processes


def work_together(sweep: Sweep, machine: Machine, count: int, log: Callable[[str], None] = lambda _: None) -> bool:
    """Start `count` workers and wait for them. One that is killed leaves its trial to the others.

    Return whether any of them ended normally. log: called with a line when a worker dies. Raise CnnlabError if one
    cannot be started, and TrainingInterrupted on Ctrl-C, after they have saved their work.
    """
    check_threads(machine.threads)
    threads = machine.threads or max(1, available_cores() // count)
    words = [sys.executable, "-m", "cnnlab", "sweep", str(sweep.file), "--runs-dir", str(machine.runs_dir),
             "--device", machine.device, "--threads", str(threads), "--progress", machine.progress,
             *(["--data-dir", str(machine.data_dir)] if machine.data_dir is not None else []),
             *(["--skip-bad"] if machine.skip_bad else [])]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    with CtrlC() as ctrl_c:
        try:
            for _ in range(count):
                # Only the sweep's table is printed, at the end. Each worker gets its own session, so that Ctrl-C does
                # not reach it directly: after a second signal it could not save its work.
                processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,  # noqa: S603
                                                  start_new_session=True))  # fmt: skip
            alive = set(processes)
            while alive:
                ctrl_c.check()
                time.sleep(_POLL)
                for process in [process for process in alive if process.poll() is not None]:
                    alive.remove(process)
                    if process.returncode:
                        left = plural(len(alive), "worker")
                        log(f"worker {process.pid} ended with code {process.returncode}; {left} left")
        except (KeyboardInterrupt, OSError) as error:
            for process in processes:
                with suppress(OSError):
                    process.terminate()
            for process in processes:
                process.wait()
            if isinstance(error, OSError):
                raise CnnlabError(f"cannot start a worker: {reason(error)}; use fewer --workers") from error
            raise TrainingInterrupted("stopped; what the workers have trained is saved.") from None
    return not all(process.returncode for process in processes)
