"""Every parser of untrusted bytes on generated input: it succeeds, or fails with one line.

CI tries a few hundred inputs of each, always the same. CNNLAB_FUZZ=50 tries fifty times as many, different each time;
`--fuzz-table docs/security.md` writes the counts into that page. `fuzzing.Trials` checks the properties.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from cnnlab import Recipe
from cnnlab.chapter.reproduce import resume_reproduction
from cnnlab.competition import work
from cnnlab.competition.layout import Layout
from cnnlab.io import text
from cnnlab.io.csv import quoted
from cnnlab.io.decode import decode
from cnnlab.io.errors import CnnlabError
from cnnlab.io.tables import to_json
from cnnlab.recipe import SETTINGS
from cnnlab.training import checkpoint
from cnnlab.training.folders import check_name
from cnnlab.training.runs import open_seeds

pytest.importorskip("py7zr")

from fuzzing import Trials, changed, changes, edited, edits, plain, right_7z, right_png, right_tar
from parsers import (
    IDX,
    RUN_FILES,
    Training,
    Weights,
    finish_run,
    for_tables,
    images,
    make_store,
    packed,
    try_archive,
    try_idx,
    try_image,
    try_recipe,
    try_run,
    try_store,
    try_submission,
    try_table,
    write_run_file,
)  # fmt: skip

MORE = int(os.environ.get("CNNLAB_FUZZ", "1"))
pytestmark = [pytest.mark.timeout(120 + 60 * MORE)]


def tries(count: int, *, slow: bool = False) -> Callable[[Any], Any]:
    """Set the number of examples: the same ones each time if CNNLAB_FUZZ=1. slow: do not shrink failures."""
    phases = [Phase.generate] if slow else [Phase.generate, Phase.shrink]
    return settings(
        max_examples=count * MORE, deadline=None, database=None, derandomize=MORE == 1, phases=phases,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Count the inputs for the table of docs/security.md."""
    trials = Trials()
    yield trials
    file = request.config.getoption("--fuzz-table")
    if file:
        before, mark, rest = file.read_text(encoding="utf-8").partition("<!-- fuzz -->\n")
        after = rest.partition("<!-- end of fuzz -->")[2]
        file.write_text(f"{before}{mark}{trials.table()}<!-- end of fuzz -->{after}", encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# Archives


@pytest.mark.parametrize("kind", [".7z", ".zip", ".tar.gz"])
@pytest.mark.parametrize("mended", [False, True], ids=["as it is", "checksums mended"])
def test_archives(trial: Trials, folder: Path, kind: str, mended: bool) -> None:
    good = packed(kind)
    (folder / "archives").mkdir(exist_ok=True)
    path = folder / "archives" / f"a{kind}"
    list_at = 32 + int.from_bytes(good[12:20], "little") if kind == ".7z" else 0

    @tries(70)
    @given(changes)
    def run(made: list[Any]) -> None:
        if kind == ".7z" and mended:  # its list of members, which is where the structure is
            content = right_7z(good[:list_at] + changed(good[list_at:], made))
        elif kind == ".zip" and mended:
            at = good.index(b"PK\1\2")
            content = good[:at] + changed(good[at:], made)
        elif kind == ".tar.gz":
            content = gzip.compress(right_tar(changed(good, made)), 1)
            content = content if mended else changed(content, made)
        else:
            content = changed(good, made)
        path.write_bytes(content)
        try_archive(trial, path)

    run()


# Images


def test_images(trial: Trials, folder: Path) -> None:
    good = images()
    for content in good.values():  # all are images, and what decodes them is loaded
        assert decode("a", 3, 8, "pad", content).shape == (3, 8, 8)

    @tries(1200)
    @given(
        st.sampled_from(sorted(good)),
        changes,
        st.booleans(),
        st.sampled_from([1, 3]),
        st.sampled_from(["pad", "crop", "stretch"]),
    )
    def run(name: str, made: list[Any], mended: bool, channels: int, fit: str) -> None:
        content = changed(good[name], made)
        if mended and name.startswith("png"):
            content = right_png(content)
        try_image(trial, folder, name.split()[0], content, channels, fit)

    run()


# Tables


fields = st.one_of(
    st.sampled_from(["", "1", "cat", "=1+1", "@x", '"', '""', '"a', 'a"b', "\n", "\r", "\r\n", ",", ";", "\t", "\ufeff",
                     "\0", "\x1b[2J", "\x9b", "é", "猫", "1.png", "train/1.png", "a" * 300, " 7 "]),
    st.text(max_size=8),
)  # fmt: skip


def test_tables(trial: Trials, folder: Path) -> None:
    for_tables(folder / "tables")
    columns = st.sampled_from(
        ["id", "label", "id,label", "label,id", "id,label,x", "id;label", '"id",label', "\ufeffid,label"]
    )

    @tries(400)
    @given(columns, st.lists(st.lists(fields, max_size=4), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), changes,
           st.booleans(), st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]))  # fmt: skip
    def run(head: str, rows: list[list[str]], end: str, made: list[Any], spoilt: bool, encoding: str) -> None:
        content = end.join([head, *map(",".join, rows)]).encode(encoding, "replace")
        content = changed(content, made) if spoilt else content
        try_table(trial, folder, content)
        try_submission(trial, folder / "tables", content, roster=spoilt)

    run()


def test_idx_files(trial: Trials, folder: Path) -> None:
    (folder / "idx").mkdir()
    path = folder / "idx" / "a.gz"

    @tries(100)
    @given(changes, changes, st.booleans())
    def run(inside: list[Any], outside: list[Any], twice: bool) -> None:
        content = gzip.compress(changed(IDX, inside))
        path.write_bytes(changed(content, outside) if twice else content)
        try_idx(trial, path)

    run()
    for bomb in (bytes(50_000_000), IDX + bytes(50_000_000)):
        path.write_bytes(gzip.compress(bomb))
        try_idx(trial, path)


# Recipes and names


def test_recipes(trial: Trials, folder: Path) -> None:
    @tries(400)
    @given(edits, st.lists(st.tuples(st.sampled_from(sorted(SETTINGS)), st.text(max_size=12)), max_size=2))
    def run(made: list[Any], chosen: list[tuple[str, str]]) -> None:
        values = edited(Recipe().to_dict(), made)
        assume(isinstance(values, dict))
        try_recipe(trial, folder, values)
        with trial("recipe", folder):
            Recipe().with_settings([f"{key}={text}" for key, text in chosen])

    run()


def test_names_and_texts(trial: Trials, folder: Path) -> None:
    @tries(400)
    @given(st.one_of(st.text(), plain.map(str)))
    def run(given: str) -> None:
        with trial("run name", folder):
            check_name(given)
            assert re.fullmatch(r"[\w.-]{1,100}", given, re.ASCII)
            assert given not in (".", "..")
            assert given.split(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1")
        for printed in (text.escape(given), quoted(given), text.escape(text.markdown(given)), str(CnnlabError(given))):
            assert not re.search(
                r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]", printed
            )
        assert json.loads(text.escape_lines(to_json([given]))) == [given]
        assert not re.search(r"[<>|]", text.markdown(given))
        assert not re.match(r"\s*[=+@-]", text.cell(given)) or re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", given)

    run()


# Runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder."""
    return finish_run(tmp_path_factory.mktemp("runs"))


def rewrite(path: Path, changes: list[Any]) -> None:
    """Edit a file of a run; its checksum is right again."""
    lines = path.read_text().splitlines() if path.name == "metrics.jsonl" else None
    value = json.loads(path.read_text()) if lines is None else [json.loads(line) for line in lines]
    if isinstance(value, dict):
        value.pop("blake2b", None)
    try:
        write_run_file(path, edited(value, changes))
    except (RecursionError, OSError):
        assume(False)


@pytest.mark.parametrize("name", RUN_FILES)
def test_run_folders(trial: Trials, folder: Path, finished: Path, name: str) -> None:
    place = folder / f"run-{name}"
    shutil.copytree(finished, place / "run")
    content = (finished / name).read_bytes()
    good = {file: (finished / file).read_bytes() for file in (name, "run.json")}

    @tries(120)
    @given(edits, changes, st.integers(0, 4))
    def run(made: list[Any], bad: list[Any], how: int) -> None:
        for file, original in good.items():
            (place / "run" / file).write_bytes(original)
        if how == 0:
            (place / "run" / name).write_bytes(changed(content, bad))
        else:
            rewrite(place / "run" / name, made)
        try_run(trial, place, name)

    run()


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "environment.json", "best.safetensors"])
def test_a_hostile_run_through_the_command(
    trial: Trials, folder: Path, finished: Path, name: str, cnnlab: Callable[..., Any]
) -> None:
    """`eval`, in this process: the whole way from the folder to the figures."""
    place = folder / f"eval-{name}"
    shutil.copytree(finished, place / "run")
    content = (finished / name).read_bytes()

    @tries(12, slow=True)
    @given(edits, changes, st.booleans())
    def run(made: list[Any], bad: list[Any], structured: bool) -> None:
        for file in ("run.json", name):
            shutil.copy(finished / file, place / "run")
        if structured and name.endswith(".json"):
            rewrite(place / "run" / name, made)
        else:
            (place / "run" / name).write_bytes(changed(content, bad))
        with trial("eval of a run folder", place):
            answer = cnnlab("eval", "run", "--split", "validation", "--json", cwd=place)
        if answer.returncode:
            assert answer.returncode == 2, answer
            assert len(answer.stderr.splitlines()) == 1, answer.stderr
        else:
            json.loads(answer.stdout)

    run()


def test_folders_of_seeds_reproductions_and_competitions(trial: Trials, folder: Path) -> None:
    base = {
        "seeds.json": {"format": "cnnlab seeds 1", "recipe": Recipe().to_dict(), "seeds": [0, 1]},
        "competition.json": {"format": "cnnlab competition 1", "folder": "x", "store": "y", "fingerprint": "z",
                             "layout": vars(Layout())},
        "reproduction.json": {"format": "cnnlab reproduction 1", "recipes": {}, "seeds": 1, "methods": [], "limit": 0,
                              "data_dir": "x", "device": "cpu", "threads": 1, "estimated_seconds": {}},
    }  # fmt: skip
    openers: dict[str, Callable[[Path], Any]] = {
        "seeds.json": lambda place: open_seeds(place),
        "competition.json": lambda place: work.open_competition("work", place.parent),
        "reproduction.json": lambda place: resume_reproduction(place, progress="none"),
    }

    @tries(200)
    @given(st.sampled_from(sorted(base)), edits)
    def run(name: str, made: list[Any]) -> None:
        place = folder / "many" / "work"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        value = edited(json.loads(json.dumps(base[name])), made)
        try:
            write_run_file(place / name, value)
        except RecursionError:
            assume(False)
        with trial(name, place):
            openers[name](place)

    run()


# Weights and checkpoints


TYPES = [
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_checkpoints(trial: Trials, folder: Path, kind: str) -> None:
    """A checkpoint with a right checksum, whatever is in it: refused, or the training goes on from it."""
    path = folder / f"checkpoint-{kind}" / "checkpoint.safetensors"
    path.parent.mkdir()
    training = Training(path, kind)
    tensors, values = checkpoint._read(path)
    text = json.dumps(values)

    @tries(80)
    @given(edits, st.integers(0, len(tensors) - 1), st.sampled_from(["", "type", "shape", "drop", "nan", "name"]),
           st.sampled_from(TYPES), st.booleans())  # fmt: skip
    def run(made: list[Any], index: int, how: str, dtype: torch.dtype, edit: bool) -> None:
        given_tensors = dict(tensors)
        name = sorted(tensors)[index]
        tensor = given_tensors[name]
        if how == "type":
            given_tensors[name] = tensor.to(dtype)
        elif how == "shape":
            given_tensors[name] = tensor.flatten()[: 1 + len(tensor.flatten()) // 2]
        elif how == "drop":
            del given_tensors[name]
        elif how == "nan" and tensor.is_floating_point():
            given_tensors[name] = torch.full_like(tensor, float("nan"))
        elif how == "name":
            given_tensors[f"{name}.more"] = tensor.clone()
        value = edited(json.loads(text), made) if edit else json.loads(text)
        try:
            checkpoint._write(path, given_tensors, value)
        except (RecursionError, KeyError, ValueError):  # not even a hostile writer could
            assume(False)
        training.go_on(trial)

    run()


def header(draw: Any) -> bytes:
    """The header of a safetensors file, right or nearly."""
    dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "F6_E2M3", "X", ""])
    numbers = st.one_of(st.integers(0, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64 - 1, -1, 10**30, 1.5]))
    entries = draw(
        st.lists(st.tuples(st.text(max_size=6), dtypes, st.lists(numbers, max_size=4), numbers, numbers), max_size=4)
    )
    values: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, dtype, shape, begin, end in entries
    }
    values["__metadata__"] = {
        "cnnlab": draw(st.sampled_from(["", "{}", '{"values": {}, "blake2b": "x"}', "[" * 5000, "1"]))
    }
    text = json.dumps(values).encode()
    length = draw(st.one_of(st.just(len(text)), st.integers(0, 300), st.sampled_from([2**32, 2**63, 2**64 - 1])))
    return struct.pack("<Q", length) + text + bytes(draw(st.integers(0, 60)))


def test_weights(trial: Trials, folder: Path) -> None:
    (folder / "weights").mkdir()
    weights = Weights(folder / "weights" / "w.safetensors")

    @tries(300)
    @given(st.data(), changes, st.booleans())
    def run(data: st.DataObject, made: list[Any], made_up: bool) -> None:
        weights.path.write_bytes(header(data.draw) if made_up else changed(weights.good, made))
        weights.take(trial)

    run()


# Stores


def test_stores(trial: Trials, folder: Path) -> None:
    place = make_store(folder)
    good = {name: (place / name).read_bytes() for name in ("store.json", "train.npy", "test.npy")}

    @tries(250)
    @given(st.sampled_from(sorted(good)), edits, changes, st.integers(0, 3))
    def run(name: str, made: list[Any], bad: list[Any], how: int) -> None:
        for other, content in good.items():
            (place / other).write_bytes(content)
        if name == "store.json" and how:
            try:
                (place / name).write_text(json.dumps(edited(json.loads(good[name]), made)))
            except RecursionError:
                assume(False)
        elif name != "store.json" and how == 1:
            out = io.BytesIO()
            np.savez(out, a=np.zeros(3))
            (place / name).write_bytes(out.getvalue())
        elif name != "store.json" and how == 2:
            np.save(place / name, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        else:
            (place / name).write_bytes(changed(good[name], bad))
        try_store(trial, place)

    run()


# The other engine


def fuzz_script(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).parent.parent / "scripts" / "fuzz.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_an_input_that_was_kept_can_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(packed(".zip")[:-9])
    answer = fuzz_script("zip", "--input", tmp_path / "a")
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="atheris is installed")
def test_without_atheris_it_says_so_in_one_line() -> None:
    answer = fuzz_script("zip", "--seconds", 1)
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "fuzz.py needs atheris, which has wheels for some Pythons only: pip install atheris"
    ]
