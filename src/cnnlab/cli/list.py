"""`cnnlab list` and `cnnlab show`: the available models, data, recipes and settings; a network layer by layer."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnlab.cli.options import AsJson
from cnnlab.io.errors import unknown
from cnnlab.io.tables import definitions, to_json
from cnnlab.io.text import echo, plural


def list_(
    what: Annotated[str | None, typer.Argument(help="models, data, recipes or settings. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List networks, data sources, recipes and settings."""
    known = known_things(what)
    echo(to_json(known) if as_json else known_list(known))


def show(
    model: Annotated[str, typer.Argument(help="Network, see `cnnlab list models`.")],
    image_size: Annotated[
        int | None, typer.Option(help="Input size in pixels. Default: the manual's.", show_default=False)
    ] = None,
    channels: Annotated[int, typer.Option(help="Channels of the image: 1 grey, 3 colour.")] = 1,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    depth: Annotated[int, typer.Option(help="1: the manual's rows; 2: also their parts; 0: every layer.")] = 1,
    format_: Annotated[str, typer.Option("--format", help="table, markdown or json.")] = "table",
) -> None:
    """Show a network layer by layer.

    Output shape, parameters, multiply-adds and receptive field of each layer.
    """
    from cnnlab.inspect.summary import summarize, summary_format

    print_as = summary_format(format_)
    echo(print_as(summarize(model, image_size=image_size, in_channels=channels, num_classes=classes, depth=depth)))


def known_things(what: str | None) -> dict[str, dict[str, str]]:
    """Return {kind: {name: description}} of models, data, recipes and settings, or of one kind.

    Raise CnnlabError for an unknown kind.
    """
    from cnnlab.data import DESCRIPTIONS as SOURCES
    from cnnlab.data import FORMS
    from cnnlab.models import DESCRIPTIONS
    from cnnlab.recipe import SETTINGS, TYPES
    from cnnlab.recipes import RECIPES

    known: dict[str, dict[str, str]] = {
        "models": {
            **DESCRIPTIONS,
            "timm:NAME": "any network of timm; timm:NAME.TAG starts from pretrained weights",
            "torchvision:NAME": "any network of torchvision; torchvision:NAME.TAG starts from pretrained weights",
        },
        "data": {**SOURCES, **FORMS},
        "recipes": {name: _recipe_line(name) for name in RECIPES},
        "settings": {
            name: f"{f.metadata['help']}; {', '.join(f.metadata['choices']) or TYPES[name].__name__}; "
            f"default {f.default}"
            for name, f in SETTINGS.items()
        },
    }
    if what is None:
        return known
    if what not in known:
        raise unknown("list", what, known)
    return {what: known[what]}


def known_list(known: dict[str, dict[str, str]]) -> str:
    """Return the result of `known_things` as text."""
    return "\n\n".join(f"{kind}:\n{definitions(things)}" for kind, things in known.items())


def _recipe_line(name: str) -> str:
    from cnnlab.recipes import RECIPES

    r = RECIPES[name]
    splits = {"test": "evaluated on the test set", "validation": "selected on validation", "train": "on all images"}
    settings = f"{plural(r.epochs, 'epoch')}, batch {r.batch_size}, {r.optimizer} {r.learning_rate:g}"
    return f"{r.model} on {r.data}, {settings}; {splits[r.eval_split]}"
