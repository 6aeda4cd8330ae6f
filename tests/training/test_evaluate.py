"""Evaluation against scikit-learn, and predictions that do not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from cnnlab import Recipe, evaluate_run, load_images, predict, train
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.defaults import choose_recipe
from cnnlab.inference import load_network
from cnnlab.io.errors import CnnlabError
from cnnlab.training.evaluate import evaluate
from cnnlab.training.runs import open_run


def test_evaluation_matches_scikit_learn(quick: Recipe) -> None:
    run = train(quick).run
    images = load_images("digits", "test")
    assert images is not None
    pre = Preprocessing.from_dict(run.info["preprocessing"])
    model = load_network(run, run.weights("last"))
    with torch.inference_mode():
        probabilities = model(pre(images.images)).double().softmax(1).numpy()
    true, predicted = images.labels.numpy(), probabilities.argmax(1)

    for batch_size in (7, 100, 1000):
        measured = evaluate(model, Loader(images, pre, batch_size, torch.device("cpu")), 10)
        np.testing.assert_array_equal(measured.confusion.numpy(), confusion_matrix(true, predicted))
        assert measured.count == 359
        assert measured.accuracy == accuracy_score(true, predicted)
        assert measured.loss == pytest.approx(log_loss(true, probabilities), rel=1e-5)
        for k, accuracy in enumerate(c.recall for c in measured.per_class):
            assert accuracy == np.mean(predicted[true == k] == k)
    assert not model.training


def test_evaluation_is_recorded_and_leaves_the_run_unchanged(quick: Recipe) -> None:
    run = train(quick).run
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    first = evaluate_run(run.path)
    assert first.split == "test"
    assert first.weights.name == "best.safetensors"
    assert evaluate_run(run.path, split="validation", weights="last").result.accuracy == pytest.approx(
        run.metrics()[-1]["val_acc"]
    )
    assert [row["split"] for row in run.evaluations()] == ["test", "validation"]
    assert run.evaluations()[0]["accuracy"] == first.result.accuracy
    assert {p: p.read_bytes() for p in before} == before


def test_evaluation_in_bfloat16_is_near_float32(quick: Recipe) -> None:
    run = train(quick.changed(epochs=2)).run
    exact, rounded = (evaluate_run(run.path, precision=p).result for p in ("float32", "bfloat16"))
    assert [record["precision"] for record in run.evaluations()] == ["float32", "bfloat16"]
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)
    assert rounded.accuracy == pytest.approx(exact.accuracy, abs=0.05)
    with pytest.raises(CnnlabError, match="int8"):
        evaluate_run(run.path, precision="int8")


def test_every_split_of_a_run_is_evaluated(quick: Recipe) -> None:
    run = train(quick).run
    counts = {split: evaluate_run(run.path, split=split).result.count for split in ("train", "validation", "test")}
    assert counts == {"train": 256, "validation": 256, "test": 359}  # `limit` applies to the splits used in training


def test_predictions_match_the_evaluation(shapes: Path) -> None:
    run = train(choose_recipe(data=f"folder:{shapes}", settings=["epochs=1", "batch_size=8"])).run
    predictions, skipped = predict(run.path, [shapes], top=2)
    assert skipped == []
    assert len(predictions) == 40
    assert all(sum(p for _, p in prediction.top) == pytest.approx(1) for prediction in predictions)
    correct = sum(prediction.top[0][0] == prediction.path.parent.name for prediction in predictions)
    assert correct == sum(evaluate_run(run.path, split=s).result.correct for s in ("train", "validation"))
    for prediction in predictions[::9]:  # one at a time
        (alone,), _ = predict(run.path, [prediction.path], top=2)
        assert [name for name, _ in alone.top] == [name for name, _ in prediction.top]
        assert alone.top[0][1] == pytest.approx(prediction.top[0][1], abs=1e-5)


def test_digits_are_predicted_from_files(tmp_path: Path) -> None:
    run = train("digits", epochs=8).run
    images = load_images("digits", "test")
    assert images is not None
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(50):
        Image.fromarray(images.images[i, 0].numpy()).save(folder / f"{i:02d}.png")
        Image.fromarray(255 - images.images[i, 0].numpy()).save(tmp_path / f"dark-{i:02d}.png")
    found, _ = predict(run.path, [folder])
    assert np.mean([p.top[0][0] == str(int(k)) for p, k in zip(found, images.labels, strict=False)]) >= 0.9
    # dark on light, as on paper
    inverted, _ = predict(run.path, sorted(tmp_path.glob("dark-*.png")), invert=True)
    assert [p.top for p in inverted] == [p.top for p in found]


def test_damaged_images_are_named_or_skipped(quick: Recipe, tmp_path: Path) -> None:
    run = train(quick).run
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    with pytest.raises(CnnlabError, match=r"bad\.png.*--skip-bad"):
        predict(run.path, [tmp_path / "bad.png", tmp_path / "good.png"])
    found, skipped = predict(run.path, [tmp_path / "bad.png", tmp_path / "good.png"], skip_bad=True)
    assert [p.path.name for p in found] == ["good.png"]
    assert len(skipped) == 1
    assert "bad.png" in skipped[0]


def test_changed_folder_is_an_error(shapes: Path) -> None:
    run = train(choose_recipe(data=f"folder:{shapes}", settings=["epochs=1", "batch_size=8"])).run
    (shapes / "dark" / "00.png").unlink()
    with pytest.raises(CnnlabError, match=f"folder:{shapes}.*{run.path}.*--data"):
        evaluate_run(run.path, split="validation")
    with pytest.raises(CnnlabError, match="--split validation"):
        evaluate_run(run.path, split="test")
    Path("empty").mkdir()
    with pytest.raises(CnnlabError, match="folder:empty.*cnnlab predict"):
        evaluate_run(run.path, data="folder:empty")


def test_a_run_without_a_validation_split_uses_its_last_weights(quick: Recipe) -> None:
    run = train(quick.changed(eval_split="test", val_fraction=0.0)).run
    assert open_run(run.path).weights().name == "last.safetensors"
    with pytest.raises(CnnlabError, match=f"{run.path}.*--split test"):
        evaluate_run(run.path, split="validation")
    assert evaluate_run(run.path, split="train").result.count == 256
