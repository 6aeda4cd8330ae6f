"""Fuzz the parsers of bytes from elsewhere, guided by branch coverage.

The parsers and checks of tests/test_fuzz.py (see tests/parsers.py) with another engine: atheris, LLVM's libFuzzer for
Python. It does not have wheels for every Python that cnnlab supports, so it is installed by hand:

    pip install atheris         # in cnnlab's development environment
    python scripts/fuzz.py      # all, a minute each; or PARSER..., --seconds N

Exit code 0: nothing found; 1: a failure, whose input is saved to the named file; 2: atheris is missing. Repeat one
input without atheris, with the traceback: `python scripts/fuzz.py PARSER --input FILE`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
# Whose branches guide: ours, and the parsers in Python that ours build on.
GUIDES = ["cnnlab", "py7zr", "PIL", "zipfile", "gzip", "csv", "json"]
MOST_SECONDS, MOST_MIB = 10, 3072  # of one input; of the process, in which torch is
Use = Callable[[bytes], None]
Made = tuple[list[bytes], Use]
"""Inputs to begin with, and what is done with each."""
Make = Callable[[Any, Any, Path], Made]
"""Given tests/parsers.py, the judge of tests/fuzzing.py, and a folder. Nothing of cnnlab is imported before."""


def archive(kind: str) -> Make:
    """Each input as it is, and with corrected checksums."""

    def make(parsers: Any, trial: Any, folder: Path) -> Made:
        import fuzzing

        path = folder / f"a{kind}"
        mend = {".7z": fuzzing.right_7z, ".zip": bytes, ".tar": fuzzing.right_tar, ".tar.gz": in_gzip}[kind]

        def use(content: bytes) -> None:
            for variant in {content, mend(content)}:
                path.write_bytes(variant)
                parsers.try_archive(trial, path)

        return [parsers.packed(kind)], use

    def in_gzip(content: bytes) -> bytes:
        import fuzzing

        return gzip.compress(fuzzing.right_tar(content), 1)

    return make


def image(parsers: Any, trial: Any, folder: Path) -> Made:
    """Of each format that is read."""
    from fuzzing import right_png

    def use(content: bytes) -> None:
        for variant in {content, right_png(content) if content[:4] == b"\x89PNG" else content}:
            parsers.try_image(trial, folder, "any", variant, 3, "pad")

    return list(parsers.images().values()), use


def table(parsers: Any, trial: Any, folder: Path) -> Made:
    """Any CSV file."""
    return tables(), lambda content: parsers.try_table(trial, folder, content)


def submission(parsers: Any, trial: Any, folder: Path) -> Made:
    """A submission, alone and in a class; a roster; a table of labels."""
    parsers.for_tables(folder)

    def use(content: bytes) -> None:
        parsers.try_submission(trial, folder, content, roster=True)

    return tables(), use


def tables() -> list[bytes]:
    """Small ones, right and wrong."""
    texts = [
        "id,label\n1,cat\n2,dog\n",
        "\ufeffid,label\r\n1,cat\r\n",
        'label,id\n"a ""b""",1\n\n',
        "id;label\n1;=1+1\n",
    ]
    return [text.encode() for text in texts]


def idx(parsers: Any, trial: Any, folder: Path) -> Made:
    """Fashion-MNIST's format: each input as a file, and as what is inside one."""
    path = folder / "a.gz"

    def use(content: bytes) -> None:
        for variant in (content, gzip.compress(content, 1)):
            path.write_bytes(variant)
            parsers.try_idx(trial, path)

    return [parsers.IDX, gzip.compress(parsers.IDX, mtime=0)], use


def recipe(parsers: Any, trial: Any, folder: Path) -> Made:
    """A recipe.json."""
    from cnnlab.io.files import read_json
    from cnnlab.recipe import Recipe

    path = folder / "recipe.json"

    def use(content: bytes) -> None:
        path.write_bytes(content)
        values = None
        with trial("recipe", folder):
            values = read_json(path)
        if values is not None:
            parsers.try_recipe(trial, folder, values)

    return [json.dumps(Recipe().to_dict()).encode()], use


def run_folder(parsers: Any, trial: Any, folder: Path) -> Made:
    """The files of a run that are JSON; the first line of an input says which of them the rest of it is."""
    parsers.finish_run(folder)
    path = folder / "run" / "run.json"
    # What has no checksum is from an older version, and is taken as it is.
    info = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("recipes", "blake2b")}
    path.write_text(json.dumps(info))
    good: dict[str, bytes] = {}
    for name in parsers.RUN_FILES:
        lines = [json.loads(part) for part in parts(name, (folder / "run" / name).read_text())]
        kept = [{k: v for k, v in line.items() if k not in ("check", "blake2b")} for line in lines]
        good[name] = "".join(json.dumps(line) + "\n" for line in kept).encode()
    last = path

    def use(content: bytes) -> None:
        nonlocal last
        first, _, rest = content.partition(b"\n")
        name = first.decode("ascii", "replace")
        if name not in good:
            return
        last.write_bytes(good[last.name])
        last = folder / "run" / name
        last.write_bytes(rest)
        parsers.try_run(trial, folder, name)

    return [f"{name}\n".encode() + content for name, content in good.items()], use


def parts(name: str, text: str) -> list[str]:
    """A file's JSON values."""
    return text.splitlines() if name.endswith("l") else [text]


def checkpoint(parsers: Any, trial: Any, folder: Path) -> Made:
    """The header of a checkpoint, and the values in it; the numbers are real, the checksum is corrected."""
    from cnnlab.training import checkpoint

    path = folder / "checkpoint.safetensors"
    training = parsers.Training(path, "sgd")
    header, numbers = taken_apart(path.read_bytes())
    values = json.loads(header.pop("__metadata__")["cnnlab"])["values"]

    def use(content: bytes) -> None:
        try:
            given = json.loads(content)
            header, values = given["header"], given["values"]
            path.write_bytes(put_together(header, numbers))
            with checkpoint._opened(path) as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
            header["__metadata__"] = checkpoint._metadata(tensors, values)
            path.write_bytes(put_together(header, numbers))
        except (ValueError, TypeError, KeyError, RecursionError, checkpoint.Damaged):
            return  # how raw headers are refused is what `weights` tries
        training.go_on(trial)

    return [json.dumps({"values": values, "header": header}).encode()], use


def weights(parsers: Any, trial: Any, folder: Path) -> Made:
    """The beginning of a file of weights, up to its numbers."""
    taker = parsers.Weights(folder / "weights.safetensors")
    length = 8 + int.from_bytes(taker.good[:8], "little")
    numbers = taker.good[length:]

    def use(content: bytes) -> None:
        for size in {content[:8], max(len(content) - 8, 0).to_bytes(8, "little")}:
            taker.path.write_bytes(size + content[8:] + numbers)
            taker.take(trial)

    return [taker.good[:length]], use


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file: its header, and the bytes behind it."""
    length = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:length]), content[length:]


def put_together(header: dict[str, Any], numbers: bytes) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def store(parsers: Any, trial: Any, folder: Path) -> Made:
    """A store's store.json, or the .npy file of its training part, header and all."""
    place = parsers.make_store(folder)
    good = {name: (place / name).read_bytes() for name in ("store.json", "train.npy")}

    def use(content: bytes) -> None:
        given = "store.json" if content[:1] == b"{" else "train.npy"
        for name in good:
            (place / name).write_bytes(content if name == given else good[name])
        parsers.try_store(trial, place)

    return list(good.values()), use


def competition(parsers: Any, trial: Any, folder: Path) -> Made:
    """The zip of a whole competition, which is prepared: tables, archives in an archive, images."""
    path = folder / "competition.zip"

    def use(content: bytes) -> None:
        path.write_bytes(content)
        parsers.try_competition(trial, path)

    return [parsers.competition_zip()], use


PARSERS: dict[str, Make] = {
    "7z": archive(".7z"), "zip": archive(".zip"), "tar": archive(".tar"), "tar.gz": archive(".tar.gz"), "image": image,
    "table": table, "submission": submission, "idx": idx, "recipe": recipe, "run": run_folder, "checkpoint": checkpoint,
    "weights": weights, "store": store, "competition": competition,
}  # fmt: skip


def made(name: str, folder: Path) -> Made:
    """A parser's beginning, having tried that nothing is wrong with it. Not waiting for the disk."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    import parsers
    from fuzzing import Trials

    torch.set_num_threads(1)
    patch("os.fsync", new=lambda _: None).start()
    inputs, use = PARSERS[name](parsers, Trials(), folder)
    warnings.simplefilter("error")  # as in the tests: a warning is no answer
    for content in inputs:
        use(content)
    return inputs, use


def feed(name: str, folder: Path, seconds: int, flags: list[str]) -> None:
    """Let libFuzzer run a parser for so many CPU seconds; it ends the process."""
    import atheris

    work, corpus = folder / "work", folder / "corpus"
    work.mkdir()
    corpus.mkdir()
    for imported in [module for module in sys.modules if module.partition(".")[0] in GUIDES]:
        del sys.modules[imported]  # by this program; they are imported again, with what guides
    with atheris.instrument_imports(include=GUIDES):
        inputs, use = made(name, work)
    for number, content in enumerate(inputs):
        (corpus / f"{number}").write_bytes(content)
    (folder / "words").write_text(words(inputs))
    last = folder / "last"

    ends = time.process_time() + seconds

    def recorded(content: bytes) -> None:
        last.write_bytes(content)  # for when the process does not even end with a report
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # ends it
        use(content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() > ends:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer's sign to stop; it knows only a clock, which others share

    longest = max(4096, 3 * max(map(len, inputs)))
    limits = [f"-rss_limit_mb={MOST_MIB}", f"-max_len={longest}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *flags, f"-dict={folder / 'words'}", str(corpus)], recorded)
    atheris.Fuzz()


def words(inputs: list[bytes]) -> str:
    """A dictionary for libFuzzer: what JSON files hold between quotes, and values that are wrong in many places."""
    from fuzzing import _INTERESTING

    quoted = {word for content in inputs if content.isascii() for word in re.findall(rb'"[^"]{1,40}"', content)}
    odd = [b"null", b"true", b"[]", b"{}", b"1e999", b"NaN", b"-0", b"1" * 30, b"[" * 40, b'"\\ud800"', b'"\\u001b[2J"']
    found = sorted({*quoted, *odd, *_INTERESTING})
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in found if len(word) <= 64)


@dataclass
class Outcome:
    """What libFuzzer said about one parser. found: the exception, or why it ended, and where the input is."""

    parser: str
    inputs: int
    new: int
    before: int
    after: int
    seconds: int
    mib: int
    found: str


def run(name: str, seconds: int, kept: Path) -> Outcome:
    """One parser, in a process of its own."""
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--seconds", str(seconds), f"-artifact_prefix={kept / name}-"]
        command = [sys.executable, __file__, name, "--child", folder, *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        said = done.stdout.decode(errors="replace")
        failed = bool(done.returncode) or "libFuzzer: exiting as requested" not in said
        if failed and "Test unit written to" not in said:  # a signal, perhaps
            said += f"\nERROR: the process ended ({done.returncode})"
            last = Path(folder) / "last"
            if last.exists():
                shutil.copyfile(last, kept / f"{name}-last")
                said += f"\nTest unit written to {kept / name}-last"
    reached = [int(number) for number in re.findall(r"^#\d+\s.* cov: (\d+)", said, re.MULTILINE)] or [0]
    found = ""
    if failed:
        place = re.findall(r"Test unit written to (.+)", said)
        why = re.findall(r"Uncaught Python exception: ===\n(.*)", said) or re.findall(r"ERROR: (.*)", said)
        found = f"{why[0] if why else said[-2000:]} {place[0] if place else ''}".strip()
    return Outcome(
        name, said_number(said, "number_of_executed_units"), said_number(said, "new_units_added"), reached[0],
        reached[-1], seconds, said_number(said, "peak_rss_mb"), found,
    )  # fmt: skip


def said_number(said: str, name: str) -> int:
    """One of libFuzzer's statistics."""
    found = re.findall(rf"stat::{name}:\s*(\d+)", said)
    return int(found[0]) if found else 0


def as_table(outcomes: list[Outcome], before: str) -> str:
    """For docs/security.md: what was there before, and these in place of earlier ones of the same parsers."""
    lines = ["| parser | inputs | kept as new | branches at first | in the end | seconds | process, MiB | found |",
             "|---|---:|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in before.splitlines()}
    for o in outcomes:
        figures = f"{o.inputs:,} | {o.new:,} | {o.before:,} | {o.after:,} | {o.seconds} | {o.mib:,}"
        rows[o.parser] = f"| {o.parser} | {figures} | {'a failure' if o.found else 'nothing'} |"
    kept = [rows[name] for name in PARSERS if name in rows]
    inputs, seconds = (sum(int(row.split(" | ")[i].replace(",", "")) for row in kept) for i in (1, 5))
    return "\n".join([*lines, *kept, f"| all | {inputs:,} | | | | {seconds:,} | | |"]) + "\n"


def main() -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"{', '.join(PARSERS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="CPU seconds for each parser")
    parser.add_argument("--kept", type=Path, default=ROOT / "build" / "fuzz", help="folder for inputs that fail")
    parser.add_argument("--table", type=Path, help="docs/security.md, whose table gets this run's rows")
    parser.add_argument("--input", type=Path, help="try one file, without atheris")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    names = arguments.parsers or list(PARSERS)
    if unknown := [name for name in names if name not in PARSERS]:
        parser.error(f"no parser {unknown[0]!r}; known: {', '.join(PARSERS)}")
    if flags and not arguments.child:
        parser.error(f"unknown: {' '.join(flags)}")
    if arguments.input:
        with tempfile.TemporaryDirectory() as folder:
            made(names[0], Path(folder))[1](arguments.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("fuzz.py needs atheris, which has wheels for some Pythons only: pip install atheris", file=sys.stderr)
        return 2
    if arguments.child:
        feed(names[0], arguments.child, arguments.seconds, flags)
    outcomes = []
    for name in names:
        outcome = run(name, arguments.seconds, arguments.kept.absolute())
        outcomes.append(outcome)
        print(f"{name}: {outcome.inputs:,} inputs, {outcome.found or 'nothing found'}", flush=True)
    if arguments.table:
        before, mark, rest = arguments.table.read_text(encoding="utf-8").partition("<!-- atheris -->\n")
        old, _, after = rest.partition("<!-- end of atheris -->")
        whole = f"{before}{mark}{as_table(outcomes, old)}<!-- end of atheris -->{after}"
        arguments.table.write_text(whole, encoding="utf-8")
    return 1 if any(outcome.found for outcome in outcomes) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
