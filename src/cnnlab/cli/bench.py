"""`cnnlab bench`: measure this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cnnlab.cli.options import AsJson, DataDir, DeviceName, Threads
from cnnlab.io.tables import Table, to_json, wrap
from cnnlab.io.text import echo, plural

if TYPE_CHECKING:
    from cnnlab.machine.bench import BenchResult


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL...]", help="Networks, see `cnnlab list models`. Default: the chapter's nine."
        ),
    ] = None,
    image_size: Annotated[
        int, typer.Option(help="Input size in pixels; 0: the manual's or the network's usual one.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per step; 0: the manual's, else 128.")] = 0,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: both if the device supports bfloat16.")
    ] = "auto",
    memory_format: Annotated[str, typer.Option(help="contiguous, channels_last, or auto: the faster one.")] = "auto",
    compile: Annotated[
        str,
        typer.Option(
            help="off; record: a CUDA graph; a mode of torch.compile: default, reduce-overhead or "
            "max-autotune-no-cudagraphs; auto: record if possible."
        ),
    ] = "auto",
    seconds: Annotated[float, typer.Option(help="Seconds to measure per network and precision.")] = 4.0,
    no_accuracy: Annotated[bool, typer.Option("--no-accuracy", help="Skip the time to accuracy.")] = False,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of bench.json and bench.png. Default: a free one in runs.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure this machine: training speed, fraction of peak, memory.

    Also measure the time to an accuracy. Takes some minutes.
    """
    from cnnlab.machine.bench import bench as measure
    from cnnlab.training.display import reporting
    from cnnlab.training.folders import result_folder

    with result_folder("bench", out) as folder:
        with reporting() as report:
            result = measure(
                models or (), image_size=image_size, batch_size=batch_size, device=device, threads=threads,
                precision=precision, memory_format=memory_format, compile=compile, seconds=seconds,
                accuracy=not no_accuracy, data_dir=data_dir, report=report,
            )  # fmt: skip
        result.save(folder)
    echo(to_json(result.to_dict()) if as_json else bench_text(result))
    echo(f"saved in {folder} (bench.json, bench.png)", error=True)


def bench_text(result: BenchResult) -> str:
    """Return the machine, a row per network and precision, the time to accuracy and what was skipped."""
    about, lines = result.environment, []
    memory = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
    lines.append(
        wrap(
            f"{about['device_name']}, {plural(about['cores'], 'core')}{memory}, torch {about['versions']['torch']}; "
            f"images: {result.images}",
            2,
        )
    )
    for precision, best in result.peaks.items():
        way = "torch.mm" if best["by"] == "mm" else "1x1 convolution"
        n = best["size"]
        rate = f"{best['flops_per_second'] / 1e9:,.0f} GFLOP/s"
        lines.append(wrap(f"peak, {precision}: {rate} ({way}, {n} x {n}, threads {best['threads']})", 2))
    compiled = any(row.get("compile", "off") != "off" for row in result.rows)
    table = Table("network", "pixels", "batch", "precision", "images/s", "compute", "of peak", "memory",
                  *(["compiled"] if compiled else []))  # fmt: skip
    failed = []
    for row in result.rows:
        columns = [row["model"], str(row["image_size"]), str(row["batch_size"]), row["precision"]]
        if "failed" in row:
            table.add_row(*columns, "failed")
            failed.append(f"{row['model']}, {row['precision']}: {row['failed']}")
            continue
        memory_bytes = row["peak_memory_bytes"]
        table.add_row(
            *columns,
            f"{row['images_per_second']:,.0f}",
            f"{row['examples_per_second']:,.0f}",
            f"{row['fraction_of_peak']:.1%}",
            "" if memory_bytes is None else f"{memory_bytes / 2**20:,.0f} MiB",
            *([f"{row['first_step_seconds']:.0f} s"] if compiled else []),
        )
    lines += ["", str(table), ""]
    lines += [
        wrap("images/s: with loading; compute: images/s without it; bench.json has memory format and threads"),
        "",
    ]
    lines += [wrap(text, 2) for text in failed]
    for row in result.to_accuracy:
        took = f"{row['split']} acc {row['accuracy']:.4f} after {row['seconds']:.1f} s"
        lines.append(wrap(f"recipe {row['recipe']}, {plural(row['epochs'], 'epoch')}: {took}", 2))
    return "\n".join([*lines, *(wrap(f"skipped: {text}", 2) for text in result.left_out)]).rstrip()
