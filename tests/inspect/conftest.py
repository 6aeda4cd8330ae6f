"""One small training that the tests of looking inside share."""

from __future__ import annotations

import pytest

from cnnlab import Run, train


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """LeNet with batch norm on digits, three epochs: about 0.9 on validation images."""
    folder = tmp_path_factory.mktemp("inspect") / "runs"
    return train("digits", model="lenet-bn", epochs=3, runs_dir=folder, name="grey", progress="none").run
