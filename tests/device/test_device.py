"""Hardware, memory and determinism: what the system reports, and that process-wide state is restored."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cnnlab.device import cgroups, memory
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, physical_cores

# Control groups


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree in place of /sys/fs/cgroup. The process is in /outer/inner, in versions 1 and 2."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(
        "4:cpu,cpuacct:/outer/inner\n3:memory:/outer/inner\n1:name=systemd:/\n0::/outer/inner\n"
    )
    return tmp_path / "cgroup"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("root", "outer", "inner", "cores"),
    [
        (None, None, None, None),
        (None, "max 100000", "max 100000", None),
        (None, "max 100000", "150000 100000", 2),
        (None, "100000 100000", "400000 100000", 1),
        ("300000 100000", "max 100000", None, 3),
        (None, None, "1000 100000", 1),
        (None, None, "nonsense", None),
        (None, None, "100000 0", None),
    ],
)
def test_cpu_quota_is_the_smallest_of_the_group_and_its_parents(
    groups: Path, root: str | None, outer: str | None, inner: str | None, cores: int | None
) -> None:
    for folder, text in ((groups, root), (groups / "outer", outer), (groups / "outer" / "inner", inner)):
        if text is not None:
            write(folder, cpu__max=text)
    assert cgroups.cpu_quota() == cores
    assert available_cores() == min(len(os.sched_getaffinity(0)), cores or 2**20)
    assert physical_cores() <= available_cores()


def test_cpu_quota_of_cgroups_version_1_is_read(groups: Path) -> None:
    inner = groups / "cpu" / "outer" / "inner"
    write(inner, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroups.cpu_quota() is None
    write(inner.parent, cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    assert cgroups.cpu_quota() == 3


def test_a_group_outside_the_mounted_tree_falls_back_to_its_root(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/../../elsewhere\n")
    write(groups, cpu__max="200000 100000", memory__max="1000", memory__current="400")
    assert cgroups.cpu_quota() == 2
    assert cgroups.free_memory() == 600


def test_free_memory_is_limited_by_the_smallest_group(groups: Path) -> None:
    assert cgroups.free_memory() is None
    usage = {"memory__current": "800000000", "memory__stat": "anon 1\ninactive_file 20000000"}
    write(groups / "outer" / "inner", memory__max="max", **usage)
    assert cgroups.free_memory() is None
    write(groups / "outer", memory__max="900000000", **usage)
    assert cgroups.free_memory() == 120_000_000
    write(
        groups / "memory",
        memory__limit_in_bytes="500",
        memory__usage_in_bytes="100",
        memory__stat="total_inactive_file 7",
    )
    assert cgroups.free_memory() == 407
    assert memory.free_memory() == 407


def test_free_memory_of_this_system_is_plausible() -> None:
    free = memory.free_memory()
    assert free is not None
    assert 2**27 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# The allocator


class FakeLibc:
    def __init__(self) -> None:
        self.settings: dict[int, int] = {}
        self.calls = self.trimmed = 0

    def mallopt(self, name: int, value: int) -> None:
        self.settings[name] = value
        self.calls += 1

    def malloc_trim(self, pad: int) -> None:
        self.trimmed += 1


KEPT = {memory._MMAP_MAX: 0, memory._TRIM_THRESHOLD: -1}


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FakeLibc:
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    allocator, fake = memory._Allocator(), FakeLibc()
    allocator._libc = fake
    monkeypatch.setattr(memory, "_allocator", allocator)
    return fake


def test_freed_memory_is_kept_until_the_outermost_use_ends(libc: FakeLibc) -> None:
    with memory.keep_freed_memory():
        assert libc.settings == KEPT
        with pytest.raises(KeyError), memory.keep_freed_memory():
            raise KeyError
        assert libc.settings == KEPT
        memory.PeakMemory(torch.device("cpu"))
        assert libc.settings == KEPT
    assert libc.settings == {
        memory._MMAP_MAX: 65536, memory._MMAP_THRESHOLD: 32 * 2**20, memory._TRIM_THRESHOLD: 64 * 2**20
    }  # fmt: skip
    with memory.keep_freed_memory():
        assert libc.settings[memory._MMAP_MAX] == 0


def test_freed_memory_is_kept_until_the_last_thread_ends(libc: FakeLibc) -> None:
    started, stop = threading.Event(), threading.Event()

    def work() -> None:
        with memory.keep_freed_memory():
            started.set()
            stop.wait()

    thread = threading.Thread(target=work)
    with memory.keep_freed_memory():
        thread.start()
        started.wait()
    assert libc.settings == KEPT
    stop.set()
    thread.join()
    assert libc.settings[memory._MMAP_MAX] == 65536


def test_the_users_settings_are_restored(libc: FakeLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1234")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "nonsense")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=0x2000:glibc.malloc.check=1")
    with memory.keep_freed_memory():
        pass
    assert libc.settings == {
        memory._MMAP_MAX: 65536, memory._MMAP_THRESHOLD: 0x2000, memory._TRIM_THRESHOLD: 1234
    }  # fmt: skip


# Determinism


def global_state() -> list[object]:
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        torch.get_rng_state().tolist(),
    ]


def test_determinism_imports_the_compiler_only_for_a_compiled_step() -> None:
    """The import takes two seconds. Once imported, the compiler's flag is set and restored."""
    code = (
        "import sys, torch\n"
        "from cnnlab.device.determinism import deterministic_compiler, reproducible\n"
        "with reproducible(0, 1):\n"
        "    assert torch.are_deterministic_algorithms_enabled()\n"
        "assert not torch.are_deterministic_algorithms_enabled()\n"
        "assert 'torch._inductor' not in sys.modules\n"
        "with reproducible(0, 1):\n"
        "    deterministic_compiler()\n"
        "    from torch._inductor import config\n"
        "    flag = config.deterministic\n"
        "assert not config.deterministic\n"
        "with reproducible(0, 1):\n"
        "    assert config.deterministic == flag\n"
        "print(flag)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "True\n"


@pytest.mark.parametrize("cublas", [None, ":16:8"])
@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("seed", [3, 2**40])  # NumPy refuses the latter
def test_reproducible_restores_everything_it_changes(
    cublas: str | None, warn_only: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if cublas:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", cublas)
    torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
    try:
        before = global_state()
        try:
            with reproducible(seed, 1):
                torch.rand(1), random.random(), np.random.rand()
                with reproducible(4, 1):
                    pass
                assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (cublas or ":4096:8")
                assert torch.are_deterministic_algorithms_enabled()
        except ValueError:
            assert seed == 2**40
        assert global_state() == before
    finally:
        torch.use_deterministic_algorithms(False)
