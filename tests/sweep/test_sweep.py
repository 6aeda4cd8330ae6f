"""`cnnlab sweep`: checks of the file, dying workers, both storages, the table, the page and the winner."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from browser import chromium
from conftest import Command, one_line_error, within_80

pytest.importorskip("optuna", reason="pip install 'cnnlab[sweep]'")

from cnnlab.io.errors import CnnlabError
from cnnlab.recipe import SETTINGS, TYPES, Recipe
from cnnlab.sweep import worker
from cnnlab.sweep.definition import NOT_SEARCHED, Choices, Range, read_sweep
from cnnlab.sweep.results import sweep_result
from cnnlab.sweep.storage import remove_torn_line
from cnnlab.sweep.worker import Machine, work
from cnnlab.sweep.workers import work_together
from cnnlab.training.guard import NonFinite
from cnnlab.training.runs import list_runs, open_run

SETTINGS_TABLE = '[settings]\nepochs = 2\nlimit = 60\nmemory_format = "contiguous"\ncompile = "off"\n'
SEARCH = "[search]\nlearning_rate = { low = 0.01, high = 1.0, log = true }\nnesterov = { choices = [true, false] }\n"


def write_sweep(
    folder: Path, top: str = "trials = 2\n", body: str = SETTINGS_TABLE + SEARCH, name: str = "s.toml"
) -> Path:
    path = folder / name
    path.write_text(f"{top}{body}")
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("trials = ", "TOML"),
        (f"trials = {'9' * 5000}\n", "TOML"),
        ("trils = 3\n" + SEARCH, "trials"),
        ("trials = 0\n" + SEARCH, "trials"),
        ('trials = "3"\n' + SEARCH, "trials"),
        ("trials = true\n" + SEARCH, "trials"),
        ("seeds = 0\n" + SEARCH, "seeds"),
        ("pruning = 1\n" + SEARCH, "pruning"),
        ('name = "a/b"\n' + SEARCH, "name"),
        ('storage = "mysql://a/b"\n' + SEARCH, "storage"),
        ('storage = "no/such/folder/x.journal"\n' + SEARCH, "storage"),
        ('storage = "postgresql://me@host:port/x"\n' + SEARCH, "storage"),
        ('storage = "postgresql://[::1/x"\n' + SEARCH, "storage"),
        ("learning_rate = { low = 1, high = 2 }\n" + SEARCH, "[search]"),
        ("trials = 2\n", "[search]"),
        ("[settings]\nlerning_rate = 1\n" + SEARCH, "learning_rate"),
        ("[settings]\nepochs = 1.5\n" + SEARCH, "epochs"),
        ("[settings]\nepochs = 0\n" + SEARCH, "epochs"),
        ('[settings]\ndata = "digits"\n' + SEARCH, "data"),
        ('[settings]\nmodel = "lenett"\n' + SEARCH, "lenet"),
        ("[settings]\nlearning_rate = 0.1\n" + SEARCH, "learning_rate"),
        ('[settings]\neval_split = "test"\n' + SEARCH, "validation"),
        ('recipe = "manual/lenet"\n[search]\nmomentum = { low = 0, high = 0.9 }', "val_fraction"),
        ('recipe = "manual/lenett"\n' + SEARCH, "manual/lenet"),
        ("[settings]\noverfit = 1\n" + SEARCH, "overfit"),
        ("[settings]\nfolds = 5\n" + SEARCH, "folds"),
        ("[search]\nlearning_rat = { low = 0.1, high = 1 }", "learning_rate"),
        ("[search]\nlearning_rate = 0.1", "learning_rate"),
        ("[search]\nlearning_rate = { low = 0.1 }", "high"),
        ("[search]\nlearning_rate = { low = 1, high = 0.1 }", "swap"),
        ("[search]\nlearning_rate = { low = 0, high = 1, log = true }", "log"),
        ("[search]\nlearning_rate = { low = 0.1, high = 1, log = true, step = 0.1 }", "step"),
        ("[search]\nlearning_rate = { low = 0.1, high = 2000 }", "learning_rate"),
        ("[search]\nlearning_rate = { low = nan, high = 1 }", "learning_rate"),
        ('[search]\nlearning_rate = { low = "0.1", high = 1 }', "learning_rate"),
        ("[search]\nlearning_rate = { low = 0.1, high = 1, setp = 0.1 }", "step"),
        ("[search]\nbatch_size = { low = 32.5, high = 64 }", "batch_size"),
        ("[search]\nbatch_size = { low = 32, high = 64, step = 0.5 }", "step"),
        ("[search]\nbatch_size = { low = 32, high = 64, step = 64 }", "step"),
        ("[search]\nlearning_rate = { low = 0.1, high = 1, step = 1e-320 }", "step"),
        ("[search]\nflip = { low = 0, high = 1 }", "choices"),
        ('[search]\noptimizer = { choices = ["sgd", "adam"] }', "adamw"),
        ("[search]\noptimizer = { choices = [] }", "choices"),
        ('[search]\noptimizer = { choices = ["sgd", "sgd"] }', "twice"),
        ('[search]\noptimizer = { choices = ["sgd"], low = 1 }', "choices"),
        ("[search]\nseed = { low = 0, high = 9 }", "seeds"),
        ("[search]\nval_fraction = { low = 0.1, high = 0.5 }", "[settings]"),
        ('[search]\neval_split = { choices = ["validation", "test"] }', "eval_split"),
        ("[search]\nmomentum = { low = 0.0, high = 0.9 }", "nesterov"),  # the recipe has nesterov = true
        ('[search]\nmodel = { choices = ["lenet", "vgg11"] }\nimage_size = { choices = [28, 12] }', "image"),
        ("seeds = 3\n[settings]\nseed = 2147483647\n" + SEARCH, "seed"),
    ],
)
def test_an_invalid_file_is_refused_in_one_line(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(CnnlabError) as error:
        read_sweep(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert names in message.removeprefix(str(path)), message
    assert "\n" not in message


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a [search] table as a user might write it, valid or not."""
    table: dict[str, Any] = {}
    for key in draw(
        st.lists(st.sampled_from(sorted(SETTINGS.keys() - NOT_SEARCHED.keys())), min_size=1, max_size=5, unique=True)
    ):
        kind, rule = TYPES[key], SETTINGS[key].metadata
        if kind in (bool, str):
            values = [True, False] if kind is bool else list(rule["choices"]) or [SETTINGS[key].default]
            table[key] = {"choices": draw(st.lists(st.sampled_from(values), min_size=1, unique=True))}
            continue
        numbers = (
            st.integers(int(rule["low"]), min(int(rule["high"]), 500))
            if kind is int
            else st.floats(max(0.0, rule["low"]), min(rule["high"], 2.0)).map(lambda v: round(v, 3))
        )
        low, high = sorted((draw(numbers), draw(numbers)))
        table[key] = {"low": low, "high": high}
        if low < high and draw(st.booleans()):
            table[key] |= draw(st.sampled_from([{"log": True}, {"step": 1 if kind is int else 0.1}, {"step": 32}]))
    return table


def toml(table: dict[str, Any]) -> str:
    rows = {
        key: ", ".join(f"{name} = {json.dumps(value)}" for name, value in row.items()) for key, row in table.items()
    }
    return "[search]\n" + "".join(f"{key} = {{ {row} }}\n" for key, row in rows.items())


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(spaces(), st.randoms(use_true_random=False))
def test_every_accepted_space_yields_valid_recipes(tmp_path: Path, table: dict[str, Any], rng: random.Random) -> None:
    path = tmp_path / "any.toml"
    path.write_text(toml(table))
    try:
        sweep = read_sweep(path)
    except CnnlabError:
        assume(False)
    for _ in range(8):
        params = {key: rng.choice([draw_value(space, rng), *space.extremes]) for key, space in sweep.search.items()}
        recipe = sweep.recipe_of(params)[0]
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert recipe.eval_split == "validation"
        assert {key: getattr(recipe, key) for key in params} == params


def draw_value(space: Range | Choices, rng: random.Random) -> Any:
    """Return a value that the sampler might draw."""
    if isinstance(space, Choices):
        return rng.choice(space.values)
    if isinstance(space.low, int):
        return rng.randrange(space.low, int(space.high) + 1, int(space.step or 1))
    return rng.uniform(space.low, space.high) if space.step is None else space.low


# Workers


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of a temporary PostgreSQL server, without network, run by an unprivileged user."""
    places = [Path(place) for place in (os.environ["PATH"].split(":"))] + sorted(
        Path("/usr/lib/postgresql").glob("*/bin")
    )
    programs = next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    owner: dict[str, Any] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        owner = {"user": "postgres", "group": "postgres"}
    common = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **owner}
    subprocess.run(
        [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "cnnlab", "--no-sync"], check=True, **common
    )
    server = subprocess.Popen(
        [programs / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-F"], **common
    )
    try:
        while not (folder / ".s.PGSQL.5432").exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"postgresql://cnnlab@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # stops at once, even with open connections
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture(params=["journal", "database"])
def storage(request: pytest.FixtureRequest) -> str:
    return "s.journal" if request.param == "journal" else str(request.getfixturevalue("database"))


@pytest.fixture(scope="module")
def forked() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cnnlab.sweep.worker", "optuna"])
    return context


def test_two_workers_finish_forty_trials_though_one_is_killed(
    tmp_path: Path, storage: str, forked: multiprocessing.context.ForkServerContext
) -> None:
    file = write_sweep(tmp_path, f'trials = 40\nstorage = "{storage}"\n')
    log = tmp_path / "log"
    log.touch()
    first, second = (forked.Process(target=standin.run_fake_trials, args=(file, log, 0.04)) for _ in range(2))
    first.start()
    second.start()
    while len(log.read_text().splitlines()) < 40 and first.is_alive():
        time.sleep(0.01)
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0

    found = sweep_result(read_sweep(file))
    assert sorted(trial.number for trial in found.trials) == [*range(40)]
    assert found.done
    assert found.count("finished") + found.count("pruned") == 40
    lines = [line.split() for line in log.read_text().splitlines()]
    ends = Counter(trial for what, trial, _ in lines if what == "end")
    begins = Counter(trial for what, trial, _ in lines if what == "begin")
    assert set(begins) == set(ends) == {str(number) for number in range(40)}
    again = [trial for trial, count in begins.items() if count > 1]
    assert len(again) <= 1  # the killed worker's trial; none, if it died between two trials
    assert sum(ends.values()) <= 41  # it may have died after the training, before reporting it
    assert len({process for _, _, process in lines}) == 2
    assert not list(tmp_path.glob("s.journal.*.lock"))


def test_two_sweeps_share_a_journal(tmp_path: Path, forked: multiprocessing.context.ForkServerContext) -> None:
    log = tmp_path / "log"
    log.touch()
    files = [
        write_sweep(tmp_path, f'trials = 6\nname = "{name}"\nstorage = "s.journal"\n', name=f"{name}.toml")
        for name in "ab"
    ]
    processes = [forked.Process(target=standin.run_fake_trials, args=(file, log, 0.1)) for file in [*files, files[1]]]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for file in files:
        assert sorted(trial.number for trial in sweep_result(read_sweep(file)).trials) == [*range(6)]
    assert sum(line.startswith("begin") for line in log.read_text().splitlines()) == 12  # none was trained twice
    assert not list(tmp_path.glob("s.journal.*.lock"))


def test_a_trial_of_a_killed_worker_is_resumed_to_the_same_bits(
    tmp_path: Path, forked: multiprocessing.context.ForkServerContext
) -> None:
    file = write_sweep(tmp_path, "trials = 1\n")
    process = forked.Process(target=standin.die_after_an_epoch, args=(file, tmp_path / "runs"))
    process.start()
    process.join()
    assert process.exitcode == -9
    sweep = read_sweep(file)
    assert [trial.state for trial in sweep_result(sweep).trials] == ["running"]
    half = open_run(tmp_path / "runs" / "s-000")
    assert len(half.metrics()) == 1
    log: list[str] = []
    work(sweep, Machine(tmp_path / "runs", threads=1), log.append)
    assert "taken" in log[0]
    (trial,) = sweep_result(sweep).trials
    assert trial.state == "finished"
    work(sweep, Machine(tmp_path / "other", threads=1))  # nothing is left to do
    assert not (tmp_path / "other").exists()
    (tmp_path / "s.journal").unlink()
    work(sweep, Machine(tmp_path / "other", threads=1))  # the same trial without a kill
    assert (tmp_path / "other/s-000/last.safetensors").read_bytes() == (half.path / "last.safetensors").read_bytes()
    assert sweep_result(sweep).trials[0].values == trial.values


def test_another_definition_is_refused_only_once_a_trial_has_finished(tmp_path: Path) -> None:
    work(read_sweep(write_sweep(tmp_path, 'data = "digits"\ntrials = 1\n')), Machine(tmp_path / "runs"))
    changed = SEARCH.replace("1.0", "0.5")
    with pytest.raises(CnnlabError, match="search"):
        work(read_sweep(write_sweep(tmp_path, "trials = 1\n", SETTINGS_TABLE + changed)), Machine(tmp_path / "runs"))
    missing = write_sweep(
        tmp_path, f'data = "folder:{tmp_path}/none"\n', "[settings]\nepochs = 1\n" + SEARCH, "missing.toml"
    )
    with pytest.raises(CnnlabError, match="none"):
        work(read_sweep(missing), Machine(tmp_path / "runs"))
    write_sweep(tmp_path, "trials = 1\n", name="missing.toml")  # now correct
    work(read_sweep(missing), Machine(tmp_path / "runs"))
    assert sweep_result(read_sweep(missing)).done


def test_bad_settings_fail_their_trial_and_machine_errors_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path, "trials = 1\n", SETTINGS_TABLE + "[search]\nshift = { low = 40, high = 50 }\n")
    for machine in (Machine(tmp_path / "runs", "nonsense"), Machine(tmp_path / "runs", progress="nonsense")):
        with pytest.raises(CnnlabError, match="nonsense"):
            work(read_sweep(file), machine)
    assert [trial.state for trial in sweep_result(read_sweep(file)).trials] == ["running"]
    work(read_sweep(file), Machine(tmp_path / "runs"))  # fails: a shift of 40 or more, images of 28 pixels
    (trial,) = sweep_result(read_sweep(file)).trials
    assert trial.state == "failed"
    assert "shift" in trial.failed

    def diverges(session: object, run: object) -> None:
        try:
            raise NonFinite.__new__(NonFinite)
        except NonFinite:
            raise CnnlabError("the loss is NaN") from None

    monkeypatch.setattr(worker, "train_run", diverges)
    file = write_sweep(tmp_path, "trials = 1\n", name="other.toml")
    work(read_sweep(file), Machine(tmp_path / "runs"))
    assert [trial.failed for trial in sweep_result(read_sweep(file)).trials] == ["the loss is NaN"]


def test_workers_run_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    sweep, log = read_sweep(write_sweep(tmp_path)), list[str]()
    assert work_together(sweep, Machine(tmp_path / "runs", threads=1), 3, log.append)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3
    assert all(f"-m cnnlab sweep {sweep.file}" in call and "--threads 1" in call for call in calls)
    assert log == []
    program.write_text("#!/bin/sh\nexit 2\n")
    assert not work_together(sweep, Machine(), 2, log.append)
    assert len(log) == 2
    with pytest.raises(CnnlabError, match="threads=0"):
        work_together(sweep, Machine(threads=0), 2)


def test_workers_of_a_sweep_without_a_result_say_why(tmp_path: Path, cnnlab: Command) -> None:
    hopeless = SETTINGS_TABLE + "[search]\nshift = { low = 40, high = 60 }\n"
    file = write_sweep(tmp_path, "trials = 2\n", hopeless)
    answer = cnnlab("sweep", str(file), "--workers", "2", "--threads", "1", "--progress", "none")
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert "no trial" in last
    assert "shift" in last


@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_a_worker_that_cannot_be_started_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def one(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        if started:
            raise OSError(12, "Cannot allocate memory")
        started.append(start(*words, **options))
        return started[0]

    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(subprocess, "Popen", one)
    with pytest.raises(CnnlabError, match="--workers"):
        work_together(read_sweep(write_sweep(tmp_path)), Machine(), 2)
    assert started[0].returncode is not None


@pytest.mark.parametrize(("name", "text"), [("s.html", "<p>mine</p>"), ("s.best.json", '{"mine": 1}')])
def test_unrelated_files_beside_the_sweep_are_not_replaced(
    tmp_path: Path, cnnlab: Command, name: str, text: str
) -> None:
    file = write_sweep(tmp_path)
    (tmp_path / name).write_text(text)
    assert name in one_line_error(cnnlab("sweep", file, "--runs-dir", tmp_path / "runs"))
    assert (tmp_path / name).read_text() == text
    assert not (tmp_path / "runs").exists()


def test_show_starts_no_worker(tmp_path: Path, cnnlab: Command) -> None:
    file = write_sweep(tmp_path)
    answer = cnnlab("sweep", file, "--show", "--workers", 2, "--runs-dir", tmp_path / "runs")
    assert answer.returncode == 0, answer.stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "s.journal").exists()


def test_a_torn_line_of_a_journal_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "x.journal"
    for content, left in ((b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b"")):
        file.write_bytes(content)
        remove_torn_line(file)
        assert file.read_bytes() == left


# The command


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, cnnlab: Command
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep with two seeds and one failing trial, and the result of its command."""
    folder = tmp_path_factory.mktemp("searched")
    body = SETTINGS_TABLE.replace("epochs = 2", "epochs = 1")
    body += "[search]\nlearning_rate = { low = 0.1, high = 1.0 }\nshift = { choices = [0, 40] }\n"  # 40 of 28 pixels
    file = write_sweep(folder, "trials = 3\nseeds = 2\nsampler_seed = 1\n", body)
    return folder, cnnlab("sweep", file, "--runs-dir", folder / "runs", "--threads", 1, "--json", cwd=folder)


def test_the_command_prints_and_writes_its_results(
    searched: tuple[Path, subprocess.CompletedProcess[str]], cnnlab: Command
) -> None:
    folder, answer = searched
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["finished"] + found["failed"] == 3
    assert found["failed"] > 0
    best = found["rows"][0]
    assert best["number"] == found["best"]
    assert best["value"] == max(row["value"] for row in found["rows"] if row["state"] == "finished")
    assert best["value"] == pytest.approx(sum(best["values"]) / 2)
    assert best["std"] is not None
    names = {
        f"s-{number:03d}-seed-{seed}"
        for row in found["rows"]
        if row["state"] == "finished"
        for number in [row["number"]]
        for seed in (0, 1)
    }
    listed = {run.path.name: run for run in list_runs(folder / "runs")}
    assert names <= set(listed)
    assert all("test" not in (run.summary() or {"shared": {}})["shared"] for run in listed.values())  # never read

    shown = cnnlab("sweep", folder / "s.toml", "--show", "--runs-dir", folder / "runs")
    assert shown.returncode == 0
    within_80("\n".join(line for line in shown.stdout.splitlines() if str(folder) not in line))
    assert shown.stdout.splitlines()[1].split()[0] == str(best["number"])

    recipe = json.loads((folder / "s.best.json").read_text())
    assert {key: recipe[key] for key in best["params"]} == best["params"]
    again = cnnlab(
        "train", "--recipe", folder / "s.best.json", "--name", "again", "--runs-dir", folder / "runs", "--threads", 1
    )
    assert again.returncode == 0, again.stderr
    assert open_run("again", folder / "runs").summary()["best"] == best["values"][0]  # type: ignore[index]


def test_the_page_draws_without_requests_in_both_languages(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install --group dev").Axe()
    with chromium(viewport={"width": 390, "height": 800}) as tab:
        tab.go((searched[0] / "s.html").as_uri())
        assert len(tab.requests) == 1
        assert tab.value("document.documentElement.scrollWidth") == 390
        sections = tab.value("[...document.querySelectorAll('section')].map((one) => one.id)")
        assert [name for name in sections if name != "importance"] == ["best", "slices", "parallel", "trials"]
        tab.page.locator("#parallel svg").focus()
        tab.page.keyboard.press("Home")
        assert tab.value("document.querySelectorAll('.chosen').length") > 3
        assert "learning_rate" in tab.page.locator(".readout").inner_text()
        assert axe.run(tab.page).response["violations"] == []
        tab.page.locator(".language").click()
        assert tab.value("document.documentElement.lang") == "zh-CN"
        assert tab.errors == []


def test_a_wrong_file_and_an_unreachable_database_are_one_line(
    tmp_path: Path, cnnlab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "s.toml" in one_line_error(cnnlab("sweep", tmp_path / "s.toml"))
    file = write_sweep(tmp_path, 'storage = "postgresql://me:secret@127.0.0.1:1/x"\n')
    error = one_line_error(cnnlab("sweep", file))
    assert "127.0.0.1" in error
    assert "secret" not in error
    file = write_sweep(tmp_path)
    (tmp_path / "s.journal").write_text("no journal\n")
    assert "s.journal" in one_line_error(cnnlab("sweep", file))
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "cnnlab[sweep]" in one_line_error(cnnlab("sweep", file))


def test_an_invalid_recipe_file_is_named(tmp_path: Path, cnnlab: Command) -> None:
    file = tmp_path / "r.json"
    for text in ("{", "[]", '{"epochs": 3}', '{"epocs": 3}'):
        file.write_text(text)
        assert "r.json" in one_line_error(cnnlab("train", "--recipe", file))
