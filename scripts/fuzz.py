"""Fuzz the parsers of untrusted bytes, guided by branch coverage.

The parsers and checks are those of tests/test_fuzz.py (see tests/parsers.py); the engine is atheris, LLVM's libFuzzer
for Python. It has no wheels for some Pythons that cnnlab supports, so it is installed by hand:

    pip install atheris         # in cnnlab's development environment
    python scripts/fuzz.py      # all parsers, a minute each; or PARSER..., --seconds N

Exit code 0: nothing found; 1: a failure, whose input is saved to the named file; 2: atheris is missing. To repeat one
input with its traceback, without atheris: `python scripts/fuzz.py PARSER --input FILE`.
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
# Modules whose branches guide the search: ours, and the Python parsers that ours use.
INSTRUMENTED = ["cnnlab", "py7zr", "PIL", "zipfile", "gzip", "csv", "json"]
INPUT_SECONDS, PROCESS_MIB = 10, 3072  # limits for one input and for the process, which holds PyTorch
Target = tuple[list[bytes], Callable[[bytes], None]]
"""The initial inputs, and a function that tries one input."""
MakeTarget = Callable[[Any, Any, Path], Target]
"""Gets tests/parsers.py, a `Trials` of tests/fuzzing.py and a folder. cnnlab is not imported before it is called."""


def archive(kind: str) -> MakeTarget:
    """Return a target that tries each input as it is, and with corrected checksums."""

    def make(parsers: Any, trial: Any, folder: Path) -> Target:
        from fuzzing import right_7z, right_tar

        def right_gzip(content: bytes) -> bytes:
            return gzip.compress(right_tar(content), 1)

        path = folder / f"a{kind}"
        corrected = {".7z": right_7z, ".zip": bytes, ".tar.gz": right_gzip}[kind]

        def use(content: bytes) -> None:
            for variant in {content, corrected(content)}:
                path.write_bytes(variant)
                parsers.try_archive(trial, path)

        return [parsers.packed(kind)], use

    return make


def image(parsers: Any, trial: Any, folder: Path) -> Target:
    """Images of every format that cnnlab reads."""
    from fuzzing import right_png

    def use(content: bytes) -> None:
        for variant in {content, right_png(content) if content[:4] == b"\x89PNG" else content}:
            parsers.try_image(trial, folder, "any", variant, 3, "pad")

    return list(parsers.images().values()), use


TABLES = [
    b"id,label\n1,cat\n2,dog\n",
    b"\xef\xbb\xbfid,label\r\n1,cat\r\n",
    b'label,id\n"a ""b""",1\n\n',
    b"id;label\n1;=1+1\n",
]


def table(parsers: Any, trial: Any, folder: Path) -> Target:
    """CSV files."""
    return TABLES, lambda content: parsers.try_table(trial, folder, content)


def submission(parsers: Any, trial: Any, folder: Path) -> Target:
    """A submission, alone and in a class; a roster; a table of labels."""
    parsers.for_tables(folder)
    return TABLES, lambda content: parsers.try_submission(trial, folder, content, roster=True)


def idx(parsers: Any, trial: Any, folder: Path) -> Target:
    """Fashion-MNIST's format: each input as a file, and as the content of a compressed one."""
    path = folder / "a.gz"

    def use(content: bytes) -> None:
        for variant in (content, gzip.compress(content, 1)):
            path.write_bytes(variant)
            parsers.try_idx(trial, path)

    return [parsers.IDX, gzip.compress(parsers.IDX, mtime=0)], use


def recipe(parsers: Any, trial: Any, folder: Path) -> Target:
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


def run_folder(parsers: Any, trial: Any, folder: Path) -> Target:
    """The JSON files of a run, with right checksums. The first line of an input names the file."""
    run = parsers.finish_run(folder)
    good = {name: (run / name).read_bytes() for name in parsers.RUN_FILES}

    def use(content: bytes) -> None:
        first, _, rest = content.partition(b"\n")
        name = first.decode("ascii", "replace")
        if name not in good:
            return
        for other, original in good.items():
            (run / other).write_bytes(original)
        (run / name).write_bytes(rest)
        try:
            values = json.loads(rest) if name != "metrics.jsonl" else [json.loads(line) for line in rest.splitlines()]
            parsers.write_run_file(run / name, values)
        except (ValueError, RecursionError):
            pass  # no JSON: tried as it is
        parsers.try_run(trial, folder, name)

    return [f"{name}\n".encode() + content for name, content in good.items()], use


def checkpoint(parsers: Any, trial: Any, folder: Path) -> Target:
    """The header of a checkpoint and the values in it, with right checksums; the tensors' bytes are real."""
    from cnnlab.training import checkpoint

    path = folder / "checkpoint.safetensors"
    training = parsers.Training(path, "sgd")
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    good_header, tensor_bytes = json.loads(content[8:length]), content[length:]
    good_values = json.loads(good_header.pop("__metadata__")["cnnlab"])["values"]

    def write(header: dict[str, Any]) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + tensor_bytes)

    def use(content: bytes) -> None:
        try:
            given = json.loads(content)
            header, values = given["header"], given["values"]
            write(header)
            with checkpoint._opened(path) as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            header["__metadata__"] = checkpoint._metadata(tensors, values)
            write(header)
        except (ValueError, TypeError, KeyError, RecursionError, checkpoint.Damaged):
            return  # invalid headers are what `weights` tries
        training.go_on(trial)

    return [json.dumps({"values": good_values, "header": good_header}).encode()], use


def weights(parsers: Any, trial: Any, folder: Path) -> Target:
    """The header of a file of weights, with and without the right length."""
    reader = parsers.Weights(folder / "weights.safetensors")
    length = 8 + int.from_bytes(reader.good[:8], "little")

    def use(content: bytes) -> None:
        for size in {content[:8], max(len(content) - 8, 0).to_bytes(8, "little")}:
            reader.path.write_bytes(size + content[8:] + reader.good[length:])
            reader.take(trial)

    return [reader.good[:length]], use


def store(parsers: Any, trial: Any, folder: Path) -> Target:
    """A store's store.json, or the .npy file of its training images."""
    place = parsers.make_store(folder)
    good = {name: (place / name).read_bytes() for name in ("store.json", "train.npy")}

    def use(content: bytes) -> None:
        changed = "store.json" if content[:1] == b"{" else "train.npy"
        for name in good:
            (place / name).write_bytes(content if name == changed else good[name])
        parsers.try_store(trial, place)

    return list(good.values()), use


def competition(parsers: Any, trial: Any, folder: Path) -> Target:
    """The zip of a whole competition, which is then prepared: tables, an archive in an archive, images."""
    path = folder / "competition.zip"

    def use(content: bytes) -> None:
        path.write_bytes(content)
        parsers.try_competition(trial, path)

    return [parsers.competition_zip()], use


PARSERS: dict[str, MakeTarget] = {
    "7z": archive(".7z"), "zip": archive(".zip"), "tar.gz": archive(".tar.gz"), "image": image,
    "table": table, "submission": submission, "idx": idx, "recipe": recipe, "run": run_folder, "checkpoint": checkpoint,
    "weights": weights, "store": store, "competition": competition,
}  # fmt: skip


def make_target(name: str, folder: Path) -> Target:
    """Return a parser's target after trying its initial inputs. fsync is switched off."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    import parsers
    from fuzzing import Trials

    torch.set_num_threads(1)
    patch("os.fsync", new=lambda _: None).start()
    inputs, use = PARSERS[name](parsers, Trials(), folder)
    warnings.simplefilter("error")  # as in the tests
    for content in inputs:
        use(content)
    return inputs, use


def fuzz(name: str, folder: Path, seconds: int, flags: list[str]) -> None:
    """Let libFuzzer run a parser for so many CPU seconds. It ends the process."""
    import atheris

    work, corpus, last = folder / "work", folder / "corpus", folder / "last"
    work.mkdir()
    corpus.mkdir()
    for module in [module for module in sys.modules if module.partition(".")[0] in INSTRUMENTED]:
        del sys.modules[module]  # imported again below, instrumented
    with atheris.instrument_imports(include=INSTRUMENTED):
        inputs, use = make_target(name, work)
    for number, content in enumerate(inputs):
        (corpus / f"{number}").write_bytes(content)
    (folder / "dictionary").write_text(dictionary(inputs))
    end = time.process_time() + seconds

    def try_one(content: bytes) -> None:
        last.write_bytes(content)  # in case the process ends without a report
        signal.setitimer(signal.ITIMER_PROF, INPUT_SECONDS)  # kills it
        use(content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() > end:
            os.kill(os.getpid(), signal.SIGUSR1)  # asks libFuzzer to stop; its own limit counts wall-clock time

    longest = max(4096, 3 * max(map(len, inputs)))
    limits = [f"-rss_limit_mb={PROCESS_MIB}", f"-max_len={longest}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *flags, f"-dict={folder / 'dictionary'}", str(corpus)], try_one)
    atheris.Fuzz()


def dictionary(inputs: list[bytes]) -> str:
    """Return a dictionary for libFuzzer: the strings of JSON inputs, and values that are wrong in many places."""
    from fuzzing import _INTERESTING

    quoted = {word for content in inputs if content.isascii() for word in re.findall(rb'"[^"]{1,40}"', content)}
    odd = [b"null", b"true", b"[]", b"{}", b"1e999", b"NaN", b"-0", b"1" * 30, b"[" * 40, b'"\\ud800"', b'"\\u001b[2J"']
    words = sorted({*quoted, *odd, *_INTERESTING})
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words if len(word) <= 64)


@dataclass
class Outcome:
    """libFuzzer's report on one parser. failure: the exception or why the process ended, and the file of the input."""

    parser: str
    inputs: int
    new: int
    branches_before: int
    branches_after: int
    seconds: int
    mib: int
    failure: str


def run(name: str, seconds: int, failures: Path) -> Outcome:
    """Fuzz one parser in a process of its own."""
    failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--seconds", str(seconds), f"-artifact_prefix={failures / name}-"]
        command = [sys.executable, __file__, name, "--child", folder, *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        output = done.stdout.decode(errors="replace")
        failed = bool(done.returncode) or "libFuzzer: exiting as requested" not in output
        if failed and "Test unit written to" not in output:  # killed by a signal, perhaps
            output += f"\nERROR: the process ended ({done.returncode})"
            if (Path(folder) / "last").exists():
                shutil.copyfile(Path(folder) / "last", failures / f"{name}-last")
                output += f"\nTest unit written to {failures / name}-last"
    coverage = [int(number) for number in re.findall(r"^#\d+\s.* cov: (\d+)", output, re.MULTILINE)] or [0]
    failure = ""
    if failed:
        files = re.findall(r"Test unit written to (.+)", output)
        why = re.findall(r"Uncaught Python exception: ===\n(.*)", output) or re.findall(r"ERROR: (.*)", output)
        failure = f"{why[0] if why else output[-2000:]} {files[0] if files else ''}".strip()
    executed, new, mib = (
        int((re.findall(rf"stat::{name}:\s*(\d+)", output) or [0])[0])
        for name in ("number_of_executed_units", "new_units_added", "peak_rss_mb")
    )
    return Outcome(name, executed, new, coverage[0], coverage[-1], seconds, mib, failure)


def as_table(outcomes: list[Outcome], before: str) -> str:
    """Return the table of docs/security.md: the rows `before`, replaced by `outcomes` of the same parsers."""
    lines = ["| parser | inputs | kept as new | branches at first | in the end | seconds | process, MiB | found |",
             "|---|---:|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in before.splitlines()}
    for o in outcomes:
        figures = f"{o.inputs:,} | {o.new:,} | {o.branches_before:,} | {o.branches_after:,} | {o.seconds} | {o.mib:,}"
        rows[o.parser] = f"| {o.parser} | {figures} | {'a failure' if o.failure else 'nothing'} |"
    ordered = [rows[name] for name in PARSERS if name in rows]
    inputs, seconds = (sum(int(row.split(" | ")[i].replace(",", "")) for row in ordered) for i in (1, 5))
    return "\n".join([*lines, *ordered, f"| all | {inputs:,} | | | | {seconds:,} | | |"]) + "\n"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"{', '.join(PARSERS)}. Default: all")
    parser.add_argument("--seconds", type=int, default=60, help="CPU seconds for each parser. Default: 60")
    parser.add_argument("--failures", type=Path, default=ROOT / "build" / "fuzz", help="folder for inputs that fail")
    parser.add_argument("--table", type=Path, help="docs/security.md, to write this run's rows into its table")
    parser.add_argument("--input", type=Path, help="try one file, without atheris")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    names = arguments.parsers or list(PARSERS)
    if unknown := [name for name in names if name not in PARSERS]:
        parser.error(f"no parser {unknown[0]!r}; choose from {', '.join(PARSERS)}")
    if flags and not arguments.child:
        parser.error(f"unknown options: {' '.join(flags)}")
    if arguments.input:
        with tempfile.TemporaryDirectory() as folder:
            make_target(names[0], Path(folder))[1](arguments.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("fuzz.py needs atheris, which has wheels for some Pythons only: pip install atheris", file=sys.stderr)
        return 2
    if arguments.child:
        fuzz(names[0], arguments.child, arguments.seconds, flags)
    outcomes = []
    for name in names:
        outcome = run(name, arguments.seconds, arguments.failures.absolute())
        outcomes.append(outcome)
        print(f"{name}: {outcome.inputs:,} inputs, {outcome.failure or 'nothing found'}", flush=True)
    if arguments.table:
        before, mark, rest = arguments.table.read_text(encoding="utf-8").partition("<!-- atheris -->\n")
        old, _, after = rest.partition("<!-- end of atheris -->")
        page = f"{before}{mark}{as_table(outcomes, old)}<!-- end of atheris -->{after}"
        arguments.table.write_text(page, encoding="utf-8")
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
