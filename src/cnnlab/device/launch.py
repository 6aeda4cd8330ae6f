"""Start a command in several processes on this machine, as torchrun does."""

from __future__ import annotations

import logging
import sys
import uuid

from cnnlab.io.errors import CnnlabError

MOST = 1024


def launch(processes: int, arguments: list[str]) -> int:
    """Run `cnnlab ARGUMENTS` in that many connected processes. Return the exit code of the first that failed, or 0.

    Raise CnnlabError for an invalid number of processes.
    """
    if not 1 <= processes <= MOST:
        raise CnnlabError(f"--nproc {processes}: choose 1 to {MOST:,}")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # the processes print their errors themselves
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "cnnlab", *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode  # torchrun has then stopped the others
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
