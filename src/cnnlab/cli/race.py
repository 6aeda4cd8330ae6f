"""`cnnlab race`: measure a recipe's time to an accuracy on this machine; print a row for docs/leaderboard.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, Threads
from cnnlab.io.tables import Table, to_json, wrap
from cnnlab.io.text import echo, plural


def race(
    name: Annotated[
        str | None, typer.Argument(help="A race. Default: list them.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of trainings, each a process of its own.")] = 5,
    data: Annotated[
        str | None,
        typer.Option(help="Source of the images, such as store:PATH. Default: the race's.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of record.json and log.txt; a stopped race continues there. Default: runs/race-NAME.",
            show_default=False,
        ),
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure the time to an accuracy on this machine, over several seeds.

    Print a row to send in for docs/leaderboard.md.
    """
    from cnnlab.machine.race import FEWEST, races_table
    from cnnlab.machine.race import race as run_race
    from cnnlab.training.display import reporting

    if name is None:
        table = Table("race", "recipe", "accuracy", "images", left=(1, 3))
        for row in races_table():
            table.add_row(*row)
        echo(str(table))
        return
    folder = out or Path("runs") / f"race-{name}"
    with reporting() as report:
        record = run_race(
            name, folder, seeds=seeds, data=data, device=device, threads=threads, data_dir=data_dir, report=report
        )
    record.save(folder)
    if as_json:
        echo(to_json(record.to_dict()))
        return
    how = "reached" if record.reached else "not reached"
    mean = record.accuracy["mean"]
    p = "" if record.p_value is None else f" (p = {record.p_value:.2g} for a mean below it)"
    echo(
        wrap(
            f"target {record.target:.3f} {how}: mean {mean:.4f} on the {record.split} split, "
            f"{plural(record.n, 'seed')}{p}"
        )
    )
    echo(wrap("race | accuracy | p | training, s | whole process, s | work, TFLOP | hardware | date", 2))
    echo(record.row())
    if record.n < FEWEST:
        echo(f"the leaderboard needs at least {FEWEST} seeds", error=True)
    echo(f"saved in {folder} (record.json, log.txt)", error=True)
