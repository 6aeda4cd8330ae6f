"""Races: the figures of a record, continuing a race, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnnlab.io.errors import CnnlabError
from cnnlab.machine import race as races
from cnnlab.machine.race import Energy, Race, Record, p_value, race
from cnnlab.recipes import RECIPES
from conftest import Command, one_line_error


def test_p_value_matches_printed_tables() -> None:
    """The 5% and 1% points of Student's distribution with four degrees of freedom: 2.132 and 3.747."""
    seeds = [0.91, 0.92, 0.93, 0.94, 0.95]
    spread = (0.00025 / 5) ** 0.5  # standard error of the mean
    for point, p in ((2.132, 0.05), (3.747, 0.01), (0.0, 0.5), (-2.132, 0.95)):
        assert p_value(seeds, 0.93 - point * spread) == pytest.approx(p, abs=1e-4)
    assert p_value([0.9], 0.8) is None
    assert p_value([0.9, 0.9], 0.8) == 0
    assert p_value([0.9, 0.9], 0.9) == 1


def test_energy_counters_may_wrap_around(tmp_path: Path) -> None:
    zones = [tmp_path / name for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0")]
    for zone in zones:
        zone.mkdir()
        (zone / "energy_uj").write_text("900000\n")
        (zone / "max_energy_range_uj").write_text("999999\n")
    meter = Energy(tmp_path)
    (zones[0] / "energy_uj").write_text("400000\n")  # the counter has wrapped around
    (zones[1] / "energy_uj").write_text("950000\n")
    assert meter.since_last() == pytest.approx(0.55)
    (zones[1] / "energy_uj").unlink()
    assert meter.since_last() is None
    assert Energy(tmp_path / "missing").since_last() is None


@pytest.fixture
def sprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a race on the digits that takes seconds."""
    monkeypatch.setitem(RECIPES, "sprint", RECIPES["digits"].changed(name="sprint", epochs=1, limit=200))
    monkeypatch.setitem(races.RACES, "sprint", Race("sprint", 0.05))
    monkeypatch.setattr(races, "peak", lambda *_: {"flops_per_second": 2e9})


@pytest.mark.slow
@pytest.mark.usefixtures("sprint")
def test_a_race_is_continued_and_counts_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "race"
    first = race("sprint", folder, seeds=1, threads=1)
    assert (first.n, first.p_value, first.split) == (1, None, "test")
    # One real process is enough: the second seed's figures are made up.
    monkeypatch.setattr(
        races, "timed_process", lambda recipe, *_, **__: {**first.per_seed[0], "seed": recipe.seed, "final_acc": 0.5}
    )
    both = race("sprint", folder, seeds=2, threads=1)
    assert both.per_seed[0] == first.per_seed[0]
    assert [seed["seed"] for seed in both.per_seed] == [0, 1]
    assert both.accuracy["mean"] == pytest.approx((first.accuracy["mean"] + 0.5) / 2)
    assert both.reached
    for seed in both.per_seed:
        assert 0 < seed["train_seconds"] < seed["race_seconds"] < seed["process_seconds"]
    assert both.work == pytest.approx(both.training_seconds["mean"] * 2e9)
    both.save(folder)
    stored = json.loads((folder / "record.json").read_text())
    assert str(tmp_path) not in json.dumps(stored)
    assert stored.pop("reached")
    assert Record(**stored).row() == both.row()
    assert len((folder / "log.txt").read_text().splitlines()) == 4  # one epoch and one result per seed
    conditions = json.loads((folder / "conditions.json").read_text())
    (folder / "conditions.json").write_text(json.dumps({**conditions, "threads": 7}))
    with pytest.raises(CnnlabError, match="threads"):
        race("sprint", folder, seeds=2, threads=1)


@pytest.mark.parametrize(("name", "text"), [("conditions.json", "[]"), ("seeds.jsonl", '{"seed": 0}\n')])
@pytest.mark.usefixtures("sprint")
def test_a_damaged_race_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "conditions.json").write_text("{}")
    (tmp_path / name).write_text(text)
    with pytest.raises(CnnlabError, match=name):
        race("sprint", tmp_path, threads=1)


def test_bad_input_is_one_line(cnnlab: Command, tmp_path: Path) -> None:
    assert "fashion-90" in cnnlab("race").stdout
    one_line_error(cnnlab("race", "fashion-99"))
    one_line_error(cnnlab("race", "mnist-99", "--seeds", "0"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    one_line_error(cnnlab("race", "fashion-90", "--data", "digits", "--out", tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
