"""Atomic writing of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cnnlab.io.files import write_atomic


def test_a_file_is_written_into_a_write_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for hand-ins has mode -wx. Reading it is patched to fail, since tests may run as root."""
    opened = os.open

    def refuse(path: Any, *options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options)

    monkeypatch.setattr(os, "open", refuse)
    write_atomic(tmp_path / "a.csv", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
