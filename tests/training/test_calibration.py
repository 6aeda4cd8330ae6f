"""Temperature and calibration error: against slow references, and in a run that predicts with them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab import Recipe, Result, evaluate_run, load_images, load_model, resume, train
from cnnlab.recipes import RECIPES
from cnnlab.training.calibration import calibrate, fit_temperature
from cnnlab.training.evaluate import BINS, calibration_error
from conftest import Command


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    recipe = RECIPES["digits"].changed(epochs=2, limit=256)
    return train(recipe, runs_dir=tmp_path_factory.mktemp("runs"), name="run", progress="none", threads=1)


def draw_logits(n: int, k: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return calibrated logits (N, K) times `scale`, and labels drawn from the softmax of the calibrated logits."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, k, generator=generator)
    return scale * z, torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_matches_a_slow_reference(seed: int) -> None:
    z, labels = draw_logits(200, 4, seed, scale=2.0)
    confidence, correct = z.softmax(1).amax(1), z.argmax(1) == labels
    confidence[0] = 1.0
    expected = 0.0
    for b in range(BINS):
        members = [i for i, p in enumerate(confidence.tolist()) if b / BINS < p <= (b + 1) / BINS]
        if members:
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            mean = sum(confidence[i].item() for i in members) / len(members)
            expected += len(members) / 200 * abs(accuracy - mean)
    assert calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_recovers_the_scale_of_the_logits(result: Result, scale: float) -> None:
    z, labels = draw_logits(20_000, 5, 0, scale)
    found = calibrate(result.run, z, labels)
    assert found.temperature == pytest.approx(scale, rel=0.03)
    assert found.ece < 0.02
    assert found.nll <= found.nll_before
    best = min(F.cross_entropy(z / t, labels).item() for t in torch.linspace(0.5, 1.5, 101) * scale)
    assert found.nll == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_a_temperature_never_worsens_the_likelihood_nor_reorders_the_classes(result: Result, seed: int) -> None:
    scale = [0.001, 0.1, 1.0, 30.0][seed % 4]
    z, labels = draw_logits(int(2 ** (seed + 1)), 3 + seed, seed, scale)
    if seed % 2:
        labels = z.argmax(1)  # all correct: infinite confidence would fit best
    if seed > 5:
        z[:, 0] = -torch.inf
        labels[labels == 0] = 1
    found = calibrate(result.run, z, labels)
    assert 0.05 <= found.temperature <= 20
    assert found.nll <= found.nll_before
    model = load_model(result.run)
    rows = z[:, :10] if z.shape[1] > 10 else F.pad(z, (0, 10 - z.shape[1]), value=-1e4)
    before, after = (
        type(model.predict(torch.zeros(1, 8, 8)))(rows, model.classes, t) for t in (1.0, found.temperature)
    )
    assert before.labels == after.labels
    for a, b in zip(before.top(10), after.top(10), strict=True):
        assert [name for name, _ in a] == [name for name, _ in b]
        assert all(p >= q for (_, p), (_, q) in zip(b, b[1:], strict=False))


def test_few_images_without_an_error_do_not_make_a_network_certain() -> None:
    z = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).repeat(10, 1)
    p = (z / fit_temperature(z, z.argmax(1))).softmax(1).amax(1)
    assert p[0].item() == pytest.approx(1 - 1 / 42, abs=1e-4)  # smoothing: as if one image of 21 had a random class
    assert fit_temperature(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)) == 1  # a single class


def test_a_run_predicts_and_is_evaluated_with_its_temperature(result: Result, cnnlab: Command, tmp_path: Path) -> None:
    run, c = result.run, result.summary["calibration"]
    assert (c["weights"], c["images"]) == ("best.safetensors", result.summary["images"]["validation"])
    assert c["nll"] <= c["nll_before"]
    assert f"temperature {c['temperature']:.2f}" in str(result)
    images = load_images("digits", "test")
    assert images is not None
    model, x = load_model(run), images.images[:20]
    with torch.inference_mode():
        z = model(model.preprocessing(x))
    torch.testing.assert_close(model.predict(x).probabilities, (z / c["temperature"]).softmax(1))

    evaluation = evaluate_run(run, split="validation", threads=1)
    assert evaluation.temperature == c["temperature"]
    assert evaluation.calibration_error == pytest.approx(c["ece"], abs=1e-6)
    assert evaluation.result.loss == pytest.approx(c["nll_before"], abs=1e-6)
    file = tmp_path / "p.csv"
    answer = cnnlab("eval", run.path, "--split", "validation", "--predictions", file)
    assert f"calibration error {c['ece']:.4f} with temperature {c['temperature']:.2f}" in answer.stdout
    with file.open() as table:
        assert {row["probability"] for row in csv.DictReader(table)} == {
            f"{p:.6f}"
            for p in evaluation.result.probability.tolist()  # type: ignore[union-attr]
        }
    assert evaluate_run(run, split="validation", weights="last").temperature == 1


def test_a_run_with_damaged_weights_is_finished_without_calibration(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(result.run.path, path)
    (path / "summary.json").unlink()
    (path / "best.safetensors").write_bytes(b"torn")
    again = resume(path, threads=1)
    assert "best.safetensors" in capsys.readouterr().err
    assert "calibration" not in again.summary
    assert again.summary["best_epoch"] == result.summary["best_epoch"]


def test_without_validation_images_there_is_no_temperature(quick: Recipe) -> None:
    result = train(quick.changed(eval_split="test", epochs=1), name="run", progress="none")
    assert "calibration" not in result.summary
    assert "temperature" not in str(result)
    assert load_model(result.run).temperature == 1
