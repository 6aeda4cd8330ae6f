"""Shared by all conversions with PyTorch's exporters: hide their output, and report a failure in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

from cnnlab.io.errors import CnnlabError, reason


def not_convertible(error: Exception, form: str) -> CnnlabError:
    """Return the error for a network that PyTorch's exporter refuses, with the exporter's reason."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return CnnlabError(
        f"PyTorch's exporter cannot convert this network to {form}; its forward may branch on values or fix the size "
        f"of a batch: {reason(cause, 200)}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's output and warnings, which users cannot act on. Failures are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # torch.export copies its own deprecated tree specifications.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logging.disable(before)
