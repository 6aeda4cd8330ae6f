"""`cnnlab bench`: parse, make one public call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, Threads
from cnnlab.io.text import echo


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL...]", help="Networks (cnnlab list models). Unsaid: the chapter's nine, by the manual."
        ),
    ] = None,
    image_size: Annotated[
        int, typer.Option(help="Pixels a side. 0: the manual's, else the network's usual one.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per step. 0: the manual's, else 128.")] = 0,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: both, where there are units for bfloat16.")
    ] = "auto",
    memory_format: Annotated[str, typer.Option(help="contiguous, channels_last, or auto: the faster one.")] = "auto",
    compile: Annotated[
        str,
        typer.Option(
            help="off; record: played from a recording, on CUDA; torch.compile's default, reduce-overhead or "
            "max-autotune-no-cudagraphs; auto: record where it can be."
        ),
    ] = "auto",
    seconds: Annotated[float, typer.Option(help="Of measured steps, for each network and precision.")] = 4.0,
    no_accuracy: Annotated[bool, typer.Option("--no-accuracy", help="Leave time to accuracy out.")] = False,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where bench.json and bench.png go. Unsaid: a free folder in runs.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure this machine in some minutes: speed of training, share of the peak, memory, time to accuracy."""
    from cnnlab.cli import tables
    from cnnlab.io.tables import to_json
    from cnnlab.machine.bench import bench as measure
    from cnnlab.machine.bench import bench_folder
    from cnnlab.training.display import make_display

    display = make_display()
    with bench_folder(out) as folder:
        try:
            found = measure(
                models or (), image_size=image_size, batch_size=batch_size, device=device, threads=threads,
                precision=precision, memory_format=memory_format, compile=compile, seconds=seconds,
                accuracy=not no_accuracy, data_dir=data_dir, report=display.read,
            )  # fmt: skip
        finally:
            display.end()
        found.save(folder)
    echo(to_json(found.to_dict()) if as_json else tables.bench(found))
    echo(f"kept in {folder} (bench.json, bench.png)", error=True)
