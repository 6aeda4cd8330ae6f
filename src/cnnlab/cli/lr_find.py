"""`cnnlab lr-find`: suggest a learning rate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cnnlab.cli.options import (
    AsJson,
    DataDir,
    DeviceName,
    InitFrom,
    NetworkName,
    NetworkOption,
    Progress,
    RecipeName,
    RunsDir,
    Settings,
    SkipBad,
    Threads,
    all_settings,
    machine_options,
    named_network,
    one_network,
    option_words,
    print_training,
)
from cnnlab.io.tables import to_json, wrap
from cnnlab.io.text import echo


def lr_find(
    model: NetworkName = None,
    model_option: NetworkOption = None,
    data: Annotated[
        str | None, typer.Option(help="Data source, as for `cnnlab train`. Default: the recipe's.", show_default=False)
    ] = None,
    recipe: RecipeName = None,
    set_: Settings = None,
    low: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Training steps to make at most.")] = 100,
    init_from: InitFrom = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of lr-find.json and lr-find.png. Default: a free one in runs.",
            show_default=False,
        ),
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    progress: Progress = "auto",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Suggest a learning rate by a range test.

    The rate rises from step to step of the recipe's training until the loss
    diverges. No image of the test set is read, and no run is created.
    """
    from cnnlab.training.folders import result_folder
    from cnnlab.training.lr_find import lr_find as find

    settings = all_settings(set_ or (), data=data, model=one_network(model, model_option))
    model, data = settings.pop("model", None), settings.pop("data", None)

    def work() -> str:
        with result_folder("lr-find", out, runs_dir) as folder:
            found = find(
                recipe, low=low, high=high, steps=steps, device=device, threads=threads, data_dir=data_dir,
                skip_bad=skip_bad, init_from=init_from, runs_dir=runs_dir, progress=progress,
                **{"model": named_network(model), "data": data, **settings},
            )  # fmt: skip
            found.save(folder)
        echo(f"saved in {folder} (lr-find.json, lr-find.png)", error=True)
        if as_json:
            return to_json(found.to_dict())
        lines = [wrap(line) for line in str(found).splitlines()]
        if found.suggestion:
            given = {
                "--data": data, "--recipe": recipe, "--init-from": init_from, "--model": model,
                **machine_options(device, threads, data_dir, runs_dir, skip_bad=skip_bad),
            }  # fmt: skip
            lines.append(_next_command(given, set_ or [], found.suggestion))
        return "\n".join(lines)

    print_training(work)


def _next_command(given: dict[str, str | None], set_: list[str], suggestion: dict[str, Any]) -> str:
    """Return the command that trains with the same arguments and the suggested settings.

    given: see `machine_options`.
    """
    words = option_words(given)
    elsewhere = {"model", "data", *suggestion}
    kept = [text for text in set_ if text.partition("=")[0].strip().replace("-", "_") not in elsewhere]
    for text in [*kept, *(f"{key}={value:g}" for key, value in suggestion.items())]:
        words += ["--set", text]
    return f"next: cnnlab train {shlex.join(words)}"
