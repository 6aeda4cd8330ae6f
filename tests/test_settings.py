"""Settings beyond the manual's in a training: augmentation, mixed labels, precision, layout, all images."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from cnnlab import Recipe, resume, train
from cnnlab.data.augment import Augmentation
from cnnlab.device import hardware, precision
from cnnlab.io.errors import TrainingInterrupted
from cnnlab.recipe import SETTINGS
from cnnlab.training import checkpoint
from cnnlab.training import loop as training
from cnnlab.training.optim import make_optimizer
from cnnlab.training.step import train_step
from conftest import Command, one_line_error

CPU = torch.device("cpu")
EVERYTHING = Recipe(
    name="everything",
    model="airbench-small",
    epochs=3,
    batch_size=8,
    optimizer="muon",
    learning_rate=0.1,
    momentum=0.6,
    schedule="step",
    decay=0.5,
    decay_every=2,
    label_smoothing=0.1,
    shift=2,
    shift_fill="reflect",
    flip=True,
    alternating_flip=True,
    vertical_flip=True,
    rotation=20,
    zoom=0.2,
    shear=10,
    fill="reflect",
    clip_norm=2.0,
    crop_scale=0.6,
    crop_ratio=1.3,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    randaugment=1,
    cutout=4,
    mixup=0.4,
    cutmix=1.0,
    precision="bfloat16",
    memory_format="channels_last",
    val_fraction=0.2,
    balance="sampler",
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "last.safetensors")


def test_an_interrupted_run_with_every_setting_resumes_to_the_same_bits(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(EVERYTHING, data=f"folder:{shapes}")
    whole = train(recipe, name="whole", threads=1)
    real, calls = training.train_step, []

    def stop_in_the_second_epoch(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", stop_in_the_second_epoch)
        with pytest.raises(TrainingInterrupted):
            train(recipe, name="stopped", threads=1)
    resumed = resume("runs/stopped", threads=1)
    one, two = weights(whole.run.path), weights(resumed.run.path)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    for a, b in zip(whole.run.metrics(), resumed.run.metrics(), strict=True):
        assert (a["loss"], a["val_loss"], a["learning_rate"]) == (b["loss"], b["val_loss"], b["learning_rate"])
    assert [row["learning_rate"] for row in whole.run.metrics()] == [0.1, 0.1, 0.05]


def test_a_recipe_has_every_setting_of_the_augmentation() -> None:
    for field in fields(Augmentation):
        assert SETTINGS[field.name].default == field.default, field.name


def test_mixed_labels_weight_two_losses() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x, a, b, share = torch.randn(6, 5), torch.arange(6) % 3, torch.arange(6).flip(0) % 3, torch.rand(6)
    y = F.one_hot(a, 3) * share[:, None] + F.one_hot(b, 3) * (1 - share[:, None])
    logits = model(x).detach()
    expected = sum(
        s * -logits[i].log_softmax(0)[a[i]] + (1 - s) * -logits[i].log_softmax(0)[b[i]] for i, s in enumerate(share)
    )
    loss, correct = train_step(model, make_optimizer(model, Recipe()), x, y)
    assert loss.item() == pytest.approx(float(expected) / 6, rel=1e-5)
    assert correct.item() == (logits.argmax(1) == torch.where(share > 0.5, a, b)).sum().item()


def test_the_scores_of_a_subset_count_its_own_images() -> None:
    labels = (torch.arange(5400) % 3 == 0).long()
    images = (labels * 200).to(torch.uint8)[:, None, None].expand(-1, 8, 8)
    result = train(data=(images.numpy(), labels.numpy()), recipe="digits", eval_split="train", val_fraction=0.0,
                          image_size=28, epochs=1, batch_size=256, threads=1)  # fmt: skip
    assert result.summary["images"] == {"train": 5400}
    assert result.run.info["data"]["train"] == 5400
    assert result.run.info["data"]["counts"]["train"] == [3600, 1800]
    rows = result.summary["figures"]["classes"]
    assert sum(row["support"] for row in rows) == 5000
    assert result.summary["figures"]["accuracy"] == pytest.approx(result.summary["train_subset_acc"])


def test_training_on_all_images_evaluates_a_subset(quick: Recipe, cnnlab: Command) -> None:
    recipe = quick.changed(eval_split="train", val_fraction=0.0)
    result = train(recipe, name="every")
    images = result.summary["images"]["train"]
    assert images == 256
    row = result.run.metrics()[-1]
    assert row["images"] == 256
    assert result.run.metrics()[-1]["train_subset_acc"] == result.summary["train_subset_acc"]
    assert "train_subset acc" in str(result)
    assert f"{images} labelled images" in str(result)
    assert result.run.weights().name == "last.safetensors"  # no figure to choose an epoch by
    answer = cnnlab("eval", "runs/every", "--split", "train", "--json")
    # the evaluated subset has all 256 images, in the same mode
    assert json.loads(answer.stdout)["accuracy"] == result.summary["train_subset_acc"]
    assert "--split test" in one_line_error(cnnlab("eval", "runs/every", "--split", "validation"))
    assert cnnlab("runs").returncode == cnnlab("train", "--resume", "runs/every").returncode == 0


# Precision


def test_a_run_is_resumed_in_its_precision(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick.changed(precision="auto", epochs=2)
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)
    whole = train(recipe, name="whole")
    assert json.loads((whole.run.path / "environment.json").read_text())["sessions"][0]["dtype"] == "bfloat16"
    real = checkpoint.save_checkpoint

    def stop(path: Path, *rest: object) -> None:
        real(path, *rest)  # type: ignore[arg-type]
        if len(rest[3]["rows"]) == 1:  # type: ignore[index]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", stop)
        with pytest.raises(TrainingInterrupted):
            train(recipe, name="stopped")
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)  # as on a CPU without it
    resume("runs/stopped")
    assert weights(Path("runs/stopped"))["0.weight"].equal(weights(whole.run.path)["0.weight"])
    plain = train(recipe, name="plain")
    assert not weights(plain.run.path)["0.weight"].equal(weights(whole.run.path)["0.weight"])
    assert plain.summary["loss"] == pytest.approx(whole.summary["loss"], rel=0.05)


@pytest.mark.parametrize("units", [True, False])
def test_has_bfloat16_depends_on_cpu_instructions(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert hardware.has_bfloat16(CPU) is units
    assert not hardware.has_bfloat16(torch.device("mps"))


def test_has_bfloat16_matches_the_cpu_flags() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("there is no /proc/cpuinfo on this system")
    named = {"avx512_bf16", "amx_tile"} & set(flags.read_text().split())
    assert hardware.has_bfloat16(CPU) is bool(named)


def test_exact_float32_restores_the_settings() -> None:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    with precision.exact_float32():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before


def test_the_memory_format_changes_only_rounding(shapes: Path) -> None:
    recipe = replace(EVERYTHING, data=f"folder:{shapes}", precision="float32", epochs=1)
    found = [
        train(replace(recipe, memory_format=layout), name=f"layout-{layout}", threads=1).summary["loss"]
        for layout in ("contiguous", "channels_last")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_shift_that_cannot_reflect_is_refused_before_training(shapes: Path, cnnlab: Command) -> None:
    line = one_line_error(
        cnnlab("train", "--data", f"folder:{shapes}", "--set", "shift=25", "--set", "shift_fill=reflect")
    )
    assert "shift=25" in line
    assert not Path("runs").exists() or not any(Path("runs").iterdir())
