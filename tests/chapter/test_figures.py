"""The chapter's figures show the real networks, are legible, and name what is missing."""

from __future__ import annotations

import inspect
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnlab.chapter.figures import FIGURES, figures, left_out
from cnnlab.chapter.graphs import collapsed, merged, trace
from cnnlab.inspect import filters as filters_module
from cnnlab.inspect.filters import filter_columns, filter_pixels, filters
from cnnlab.io.errors import CnnlabError
from cnnlab.io.fonts import width as inches
from cnnlab.models import MODELS, build_model
from cnnlab.models.resnet import Residual
from cnnlab.recipes import RECIPES
from cnnlab.training.checkpoint import save_weights
from cnnlab.training.runs import Run, create_run, write_metrics

SVG = "{http://www.w3.org/2000/svg}"
DIAGRAMS = [name for name, figure in FIGURES.items() if figure.draw is not None]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All diagrams, drawn once."""
    folder = tmp_path_factory.mktemp("figures")
    files = figures(out_dir=folder)
    assert [f.name for f in files] == [f"figure-{n}.{end}" for n in DIAGRAMS for end in ("svg", "png")]
    return folder


def panels(path: Path) -> list[list[str]]:
    """Return the texts of each panel's boxes, from top to bottom."""
    found: dict[str, list[tuple[float, list[str]]]] = defaultdict(list)
    for group in ET.parse(path).iter(f"{SVG}g"):
        texts = group.findall(f"{SVG}text")
        if group.get("class") == "node" and texts:
            panel = group.findtext(f"{SVG}title", "")[:2]  # p0, p1, ...
            found[panel].append((float(texts[0].attrib["y"]), ["".join(text.itertext()) for text in texts]))
    return [[word for _, box in sorted(found[panel]) for word in box] for panel in sorted(found)]


def box_texts(path: Path) -> list[str]:
    return [word for panel in panels(path) for word in panel]


def meta_network(name: str, side: int = 224) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, num_classes=10, in_channels=1, image_size=side)


def convs(model: nn.Module) -> list[tuple[int, int]]:
    """Return (window, channels) of each convolution, in order."""
    return [(m.kernel_size[0], m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d)]


def convs_in(lines: list[str]) -> list[tuple[int, int]]:
    """Return (window, channels) of each convolution, read from the texts of a figure."""
    return [
        (int(k), int(c))
        for n, k, c in re.findall(r"(?:(\d) × )?conv (\d+)×\2?\d*, (\d+)", "\n".join(lines))
        for _ in range(int(n or 1))
    ]


# Contents


def test_lenet_and_alexnet_are_drawn_layer_by_layer(drawn: Path) -> None:
    lines = box_texts(drawn / "figure-1.2.svg")
    lenet, alexnet = meta_network("lenet", 28), meta_network("alexnet")
    assert convs_in(lines) == convs(lenet) + convs(alexnet)
    linear = [m.out_features for net in (lenet, alexnet) for m in net.modules() if isinstance(m, nn.Linear)]
    assert [int(line.split()[1]) for line in lines if line.startswith("linear ")] == linear
    assert "conv 11×11, 96, stride 4, pad 1" in lines
    kinds = Counter(type(m).__name__ for net in (lenet, alexnet) for m in net.modules())
    assert sum("max-pool" in line for line in lines) == kinds["MaxPool2d"]
    assert sum("avg-pool" in line for line in lines) == kinds["AvgPool2d"]
    assert sum("ReLU" in line for line in lines) == kinds["ReLU"]
    assert sum("sigmoid" in line for line in lines) == kinds["Sigmoid"]
    assert sum("dropout" in line for line in lines) == kinds["Dropout"]
    # The shapes that the manual prints
    for shape in ("6×28×28", "16×5×5 = 400", "96×54×54", "256×12×12", "256×5×5 = 6400"):
        assert shape in lines


def test_alexnet_and_vgg_are_drawn_with_all_convolutions(drawn: Path) -> None:
    lines = box_texts(drawn / "figure-1.3.svg")
    assert convs_in(lines) == convs(meta_network("alexnet")) + [(3, 512)] * 2 + convs(meta_network("vgg11"))
    assert {"AlexNet", "VGG block", "VGG-11", "512×7×7 = 25088"} <= set(lines)


def test_vgg_and_nin_are_drawn_with_all_convolutions(drawn: Path) -> None:
    lines = box_texts(drawn / "figure-1.4.svg")
    nin_block = [(11, 96), (1, 96), (1, 96)]
    assert convs_in(lines) == [(3, 512)] * 2 + convs(meta_network("vgg11")) + nin_block + convs(meta_network("nin"))
    assert {"global avg-pool", "10×5×5", "dropout 0.5"} <= set(lines)


def test_the_residual_block_is_the_normal_block_plus_a_shortcut(drawn: Path) -> None:
    layers = ["conv 3×3, 64, pad 1", "batch norm", "ReLU", "conv 3×3, 64, pad 1", "batch norm"]
    file = drawn / "figure-1.5.svg"
    assert panels(file) == [
        ["normal block", "x, 64×56×56", *layers, "ReLU", "output"],
        ["residual block", "x, 64×56×56", *layers, "+", "ReLU", "output"],
    ]
    assert {"f(x)", "f(x) − x"} <= {"".join(text.itertext()) for text in ET.parse(file).iter(f"{SVG}text")}
    assert arrows(file) == 7 + 9


def test_the_shortcut_is_drawn_with_and_without_its_convolution(drawn: Path) -> None:
    lines = box_texts(drawn / "figure-1.6.svg")
    block = Residual(64, 128, 2, manual=True)
    assert Counter(convs_in(lines)) == Counter([(3, 64), (3, 64), *convs(block)])
    assert lines.count("+") == 2
    assert lines.count("batch norm") == lines.count("ReLU") == 4
    assert {"conv 1×1, 128, stride 2", "64×56×56", "128×28×28"} <= set(lines)


def test_resnet18_is_drawn_with_all_layers(drawn: Path) -> None:
    lines = box_texts(drawn / "figure-1.7.svg")
    model = meta_network("resnet18-manual")
    assert Counter(convs_in(lines)) == Counter(convs(model))
    assert len([c for c in convs_in(lines) if c[0] > 1]) == 17
    assert len([c for c in convs_in(lines) if c[0] == 1]) == 3
    assert lines.count("+, ReLU") == sum(isinstance(m, Residual) for m in model.modules()) == 8
    assert sum(line.startswith("BN") for line in lines) == 17
    assert {"64×112×112", "64×56×56", "128×28×28", "256×14×14", "512×7×7", "linear 10"} <= set(lines)


def arrows(path: Path) -> int:
    """Count the visible arrows."""
    return sum(g.get("class") == "edge" and g.find(f"{SVG}polygon") is not None for g in ET.parse(path).iter(f"{SVG}g"))


# The networks left out differ from these only in depth and width.
@pytest.mark.parametrize("name", [n for n in MODELS if not re.search("34|101|152|169|201|vgg1[36]|vgg19", n)])
def test_networks_can_be_traced(name: str) -> None:
    side = int(inspect.signature(MODELS[name]).parameters["image_size"].default)
    model = meta_network(name, side)
    graph = trace(model, (1, side, side))
    labels = [line for box in graph.boxes.values() for line in box.lines]
    assert sorted(convs_in(labels)) == sorted(convs(model))
    names = list(graph.boxes)
    assert all(names.index(a) < names.index(b) for a, b in graph.arrows)
    ends = [n for n in names if not graph.after(n)]
    assert len(ends) == 1
    assert graph.boxes[ends[0]].shape == (10,)
    assert {n for n in names if not graph.before(n)} == {names[0]}


def test_a_changed_network_changes_its_diagram() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 64, 3))
    before = trace(model, (1, 8, 8))
    model[0] = nn.Conv2d(1, 7, 3, padding=1)
    model[3] = nn.Linear(7 * 64, 3)
    after = trace(model, (1, 8, 8))
    assert [b.lines for b in before.boxes.values()][1] == ("conv 5×5, 6, pad 2",)
    assert [b.lines for b in after.boxes.values()][1] == ("conv 3×3, 7, pad 1",)
    assert after.boxes["_0"].shape == (7, 8, 8)


def test_the_forward_function_is_traced_not_the_list_of_layers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Conv2d(1, 9, 1)
            self.second, self.first = nn.Conv2d(4, 4, 1), nn.Conv2d(1, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x))
            return torch.cat((y, self.second(y)), 1)

    graph = trace(Odd(), (1, 8, 8))
    assert [b.lines[0] for b in graph.boxes.values()] == [
        "image, 1×8×8", "conv 1×1, 4", "ReLU", "conv 1×1, 4", "concat"
    ]  # fmt: skip
    assert [len(graph.before(n)) for n in graph.boxes] == [0, 1, 1, 1, 2]
    assert len(graph.main_path()) == 5


def test_tracing_does_not_change_the_network() -> None:
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, (1, 28, 28))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())


def test_merging_and_collapsing_keep_the_path() -> None:
    graph = trace(meta_network("resnet18-manual"), (1, 224, 224))
    small = collapsed(merged(graph))
    assert [b.kind for b in small.boxes.values()] == ["text", *["block"] * 5, "pool", "linear"]
    assert small.boxes[small.main_path()[-1]].shape == (10,)
    assert len(small.main_path()) == len(small.boxes) == len(small.arrows) + 1


def test_a_network_that_cannot_be_traced_is_named() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(CnnlabError, match="Moody"):
        trace(Moody(), (1, 8, 8))
    with pytest.raises(CnnlabError, match=r"Sequential.*\b1, 32, 32\b"):
        trace(meta_network("lenet", 28), (1, 32, 32))


# Legibility


@pytest.mark.parametrize("name", DIAGRAMS)
def test_figures_fit_a_page(drawn: Path, name: str) -> None:
    with Image.open(drawn / f"figure-{name}.png") as image:
        image.load()
        width, height = image.size
        grey = np.asarray(image.convert("L"))
    assert 4 < width / 200 < 9, "inches: in 16 cm of width the letters stay above 7 points"
    assert height / width < 2.2
    assert grey.min() < 60
    assert grey.max() == 255
    root = ET.parse(drawn / f"figure-{name}.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert FIGURES[name].title in "".join(root.itertext())


@pytest.mark.parametrize("name", DIAGRAMS)
def test_texts_do_not_overlap_or_leave_the_page(drawn: Path, name: str) -> None:
    root = ET.parse(drawn / f"figure-{name}.svg").getroot()
    left, _, width, _ = map(float, root.attrib["viewBox"].split())
    boxes = []
    for text in root.iter(f"{SVG}text"):
        size = float(text.attrib["font-size"])
        wide = 0.5 * size * len("".join(text.itertext()))  # about the mean width of Arial's letters
        x = float(text.attrib["x"])
        x -= {"middle": wide / 2, "end": wide}.get(text.get("text-anchor", "start"), 0)
        boxes.append((x, float(text.attrib["y"]) - 0.8 * size, x + wide, float(text.attrib["y"])))
    for i, a in enumerate(boxes):
        assert left <= a[0]
        assert a[2] <= left + width
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_kinds_differ_in_greyscale(drawn: Path) -> None:
    seen: dict[str, ET.Element] = {}
    for group in ET.parse(drawn / "figure-1.2.svg").iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        if group.get("class") == "node" and box is not None:
            seen[group.findtext(f"{SVG}text", "").split()[0]] = box

    def lightness(kind: str) -> float:
        red, green, blue = (int(seen[kind].attrib["fill"][i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert lightness("max-pool") - 18 > lightness("conv") > lightness("linear") + 18
    assert float(seen["max-pool"].attrib["rx"]) > 0 == float(seen["conv"].attrib["rx"])
    assert seen["linear"].attrib["stroke-width"] != seen["conv"].attrib["stroke-width"]
    assert min(map(lightness, ("max-pool", "conv", "linear"))) > 150, "black letters stay readable"


def rectangles(root: ET.Element) -> list[tuple[float, float, float, float]]:
    """Return (left, top, right, bottom) of the outer outline of each box."""
    found = []
    for group in root.iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        if group.get("class") == "node" and box is not None:
            left, top, wide, high = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
            found.append((left, top, left + wide, top + high))
    return found


@pytest.mark.parametrize("name", DIAGRAMS)
def test_arrows_have_right_angles_end_at_boxes_and_cross_no_box(drawn: Path, name: str) -> None:
    root = ET.parse(drawn / f"figure-{name}.svg").getroot()
    boxes = rectangles(root)
    texts = [(float(t.attrib["x"]), float(t.attrib["y"])) for t in root.iter(f"{SVG}text")]
    straight = []
    for group in root.iter(f"{SVG}g"):
        if group.get("class") != "edge":
            continue
        line, head = group.find(f"{SVG}path"), group.find(f"{SVG}polygon")
        assert line is not None
        assert head is not None
        points = [tuple(map(float, p.split(","))) for p in line.attrib["d"][1:].split(" L")]
        tip = tuple(map(float, head.attrib["points"].split()[0].split(",")))
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], tip], strict=True):
            assert abs(x0 - x1) < 0.02 or abs(y0 - y1) < 0.02, "a slanted line"
            for left, top, right, bottom in boxes:
                inside = max(x0, x1) > left + 0.1 and min(x0, x1) < right - 0.1
                assert not (inside and max(y0, y1) > top + 0.1 and min(y0, y1) < bottom - 0.1), "a line through a box"
        at_box = any(b[0] - 0.1 <= tip[0] <= b[2] + 0.1 and b[1] - 0.1 <= tip[1] <= b[3] + 0.1 for b in boxes)
        assert at_box or any(abs(x - tip[0]) < 1 and 0 < y - tip[1] < 15 for x, y in texts), "an arrow to nothing"
        if len(points) == 2 and points[0][0] == tip[0]:
            straight.append(tip[1] - points[0][1])
    # All arrows of a figure have the same length, except those that cross the border of a frame.
    assert len({round(length, 1) for length in straight}) <= (2 if name in ("1.5", "1.7") else 1) + (name == "1.6")


@pytest.mark.parametrize("name", DIAGRAMS)
def test_padding_is_shown(drawn: Path, name: str) -> None:
    lines = " ".join(box_texts(drawn / f"figure-{name}.svg"))
    assert "pad 1" in lines


@pytest.mark.parametrize("name", DIAGRAMS)
def test_words_fit_their_boxes(drawn: Path, name: str) -> None:
    for group in ET.parse(drawn / f"figure-{name}.svg").iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        if group.get("class") != "node" or box is None:
            continue
        left, wide = float(box.attrib["x"]), float(box.attrib["width"])
        for text in group.findall(f"{SVG}text"):
            size = 72 * inches("".join(text.itertext()), float(text.attrib["font-size"]))
            start = float(text.attrib["x"]) - size * {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
            assert left <= start
            assert start + size <= left + wide


def test_an_svg_has_no_background_and_follows_dark_colours(drawn: Path) -> None:
    text = (drawn / "figure-1.5.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    root = ET.fromstring(text)
    page = float(root.attrib["viewBox"].split()[2])
    assert all(float(box.get("width", 0)) < page * 0.9 for box in root.iter(f"{SVG}rect"))


# 1.1


def saved_run(path: Path, model: str = "alexnet", channels: int = 1, side: int = 65) -> tuple[Run, nn.Module]:
    """Save a run of an untrained network, as training does."""
    path.mkdir(parents=True)
    recipe = replace(RECIPES["digits"], model=model)
    sizes = {"num_classes": 10, "in_channels": channels, "image_size": side}
    data = {"source": "digits", "classes": [str(i) for i in range(10)], "fingerprint": ""}
    data |= {"skipped": [], "counts": {"train": [1] * 10}, "passed_over": {}, "warnings": []}
    pixels = {"channels": channels, "native_size": side, "image_size": side, "fit": "pad"}
    pixels |= {"interpolation": "bilinear"}
    pixels |= {"background": "black", "low": 0.0, "high": 255.0, "mean": [0.0] * channels, "std": [1.0] * channels}
    pixels |= {"interpolation": "bilinear", "lows": [], "highs": []}
    network = {"name": model, "parameters": 0, **sizes}
    run = create_run(path, recipe, {"model": network, "data": data, "preprocessing": pixels})
    torch.manual_seed(0)
    net = build_model(model, **sizes)
    save_weights(path / "best.safetensors", net)
    save_weights(path / "last.safetensors", net)
    return run, net


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filter_pixels_match_the_weights_in_order(tmp_path: Path, channels: int) -> None:
    run, net = saved_run(tmp_path / "run", "lenet", channels, 28)
    weight = next(iter(net.parameters())).detach().numpy()  # (6, C, 5, 5)
    picture = filters(run)
    (axes,) = picture.axes
    grid = np.asarray(axes.images[0].get_array())  # the filters in a row, a white column between them
    assert grid.shape[:2] == (5, 6 * 6 - 1)
    for i, own in enumerate(weight):
        shown = own if channels == 3 else own.mean(0, keepdims=True)
        expected = 0.5 + 0.5 * shown.transpose(1, 2, 0) / np.abs(shown).max()
        np.testing.assert_allclose(grid[:, 6 * i : 6 * i + 5].reshape(expected.shape), expected, atol=1e-6)
    caption = picture.texts[0].get_text()
    assert "6 filters 5×5" in caption
    assert "lenet" in caption
    assert "best.safetensors" in caption
    assert ("mean over 2 channels" in caption) == (channels == 2)


def test_filters_that_are_not_learned_are_labelled_not_learned(tmp_path: Path) -> None:
    run, _ = saved_run(tmp_path / "whitened", "airbench94", 3, 32)
    assert "not learned" in filters(run).texts[0].get_text()
    run, _ = saved_run(tmp_path / "learned", "lenet", 1, 28)
    assert "not learned" not in filters(run).texts[0].get_text()


@pytest.mark.parametrize("name", DIAGRAMS)
def test_the_documented_figures_are_current(drawn: Path, name: str) -> None:
    committed = Path(__file__).parents[2] / "docs" / "images" / f"figure-{name}.svg"
    assert panels(committed) == panels(drawn / f"figure-{name}.svg")


def test_zero_is_grey_and_the_largest_weight_black_or_white() -> None:
    weight = torch.tensor([[-2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).reshape(2, 1, 1, 3)
    assert filter_pixels(weight).flatten().tolist() == [0.0, 0.5, 0.75, 0.5, 0.5, 0.5]


def test_filter_grids_have_the_expected_numbers_of_columns() -> None:
    assert [filter_columns(n) for n in (1, 3, 6, 16, 20, 32, 64, 96)] == [1, 3, 6, 16, 10, 16, 16, 16]


def test_the_96_filters_of_alexnet_are_drawn_in_colour(tmp_path: Path) -> None:
    saved_run(tmp_path / "runs" / "mine", "alexnet", 3)
    svg, png = figures(["1.1"], run="mine", out_dir=tmp_path / "out", runs_dir=tmp_path / "runs")
    ET.parse(svg)
    before = svg.read_bytes()
    figures(["1.1"], run="mine", out_dir=tmp_path / "out", runs_dir=tmp_path / "runs", formats=["svg"])
    assert svg.read_bytes() == before
    with Image.open(png) as image:
        assert 1000 < image.size[0] < 1600
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[..., 0] != pixels[..., 2]).any(), "in colour"


def test_the_caption_has_the_epoch_of_the_weights(tmp_path: Path) -> None:
    run, _ = saved_run(tmp_path / "run", "lenet", 1, 28)
    seconds = dict.fromkeys(("train_seconds", "compute_seconds", "evaluation_seconds", "seconds"), 1.0)
    speeds = dict.fromkeys(("images_per_second", "examples_per_second"), 1.0)
    row = {"loss": 1.0, "train_acc": 0.5, "val_loss": 1.0, "learning_rate": 0.1, "images": 1, "never_predicted": [],
           "val_balanced_acc": 0.5, "val_macro_f1": 0.5, **seconds, **speeds}  # fmt: skip
    rows = [{"epoch": i + 1, "val_acc": acc, **row} for i, acc in enumerate((0.3, 0.6, 0.6))]
    write_metrics(run, rows)
    assert "best.safetensors (epoch 2)" in filters(run).texts[0].get_text()
    assert "last.safetensors (epoch 3)" in filters(run, "last").texts[0].get_text()
    write_metrics(run, [{**row, "val_balanced_acc": 0.1 * row["epoch"]} for row in rows])
    by_class = replace(run, recipe=run.recipe.changed(select="balanced_accuracy"))
    assert "best.safetensors (epoch 3)" in filters(by_class).texts[0].get_text()


def test_a_network_without_convolutions_has_no_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = saved_run(tmp_path / "run", "lenet", 1, 28)
    monkeypatch.setattr(filters_module, "load_network", lambda run, file, model: nn.Linear(3, 3))
    with pytest.raises(CnnlabError, match="convolution"):
        filters(run)


# Files and errors


def test_chosen_figures_in_chosen_formats_replace_old_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert [f.name for f in figures(["1.6", "1.5", "1.6"], out_dir=out, formats=["svg"])] == [
        "figure-1.5.svg", "figure-1.6.svg"
    ]  # fmt: skip
    (out / "figure-1.5.svg").write_text("old")
    figures(["1.5"], out_dir=out, formats=["svg"])
    assert "<svg" in (out / "figure-1.5.svg").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["figure-1.5.svg", "figure-1.6.svg"]


def test_the_same_networks_give_the_same_files(tmp_path: Path, drawn: Path) -> None:
    (again,) = figures(["1.7"], out_dir=tmp_path, formats=["svg"])
    assert again.read_bytes() == (drawn / "figure-1.7.svg").read_bytes()


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CnnlabError, match=r"'1\.9'"):
        figures(["1.9"])
    with pytest.raises(CnnlabError, match=r"'pdf'.*png, svg"):
        figures(["1.2"], formats=["pdf"])
    with pytest.raises(CnnlabError, match=r"1\.1.*--run.*cnnlab train .*--recipe manual/alexnet"):
        figures(["1.1"])
    with pytest.raises(CnnlabError, match="nothing.*cnnlab runs"):
        figures(["1.1"], run="nothing")
    with pytest.raises(CnnlabError, match=r"1\.8.*--data.*cnnlab kaggle show"):
        figures(["1.8"])
    assert not (tmp_path / "figures").exists()


def test_sample_images_are_drawn_reproducibly(tmp_path: Path) -> None:
    svg, png = figures(["1.8"], data="digits", out_dir=tmp_path / "out")
    assert "<svg" in svg.read_text()
    with Image.open(png) as picture:
        assert picture.size[0] > 300
    again, _ = figures(["1.8"], data="digits", out_dir=tmp_path / "again")
    assert again.read_bytes() == svg.read_bytes()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CnnlabError, match=f"{tmp_path / 'file'}.*File exists"):
        figures(["1.5"], out_dir=tmp_path / "file")


def test_the_recipe_in_the_remedy_exists() -> None:
    text = left_out()
    assert "1.1" in text
    assert "1.8" in text
    assert RECIPES[text.split("--recipe ")[1].split(";")[0]].model == "alexnet"
    assert "1.1" not in left_out(run="some")
    assert left_out(run="some", data="digits") == ""
    assert left_out(["1.2"]) == ""


def test_drawing_needs_no_external_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "graphviz", None)
    assert len(figures(["1.5", "1.8"], data="digits", out_dir=tmp_path, formats=["svg"])) == 2
