"""What a Python user calls: settings as keywords, and the batches that a network sees."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import cnnlab
from cnnlab import CnnlabError
from cnnlab.recipes import RECIPES


def test_any_setting_is_a_keyword() -> None:
    result = cnnlab.train("digits", epochs=1, batch_size=128, limit=200, progress="none")
    assert result.run.recipe.batch_size == 128
    assert result.run.recipe.name == "digits, epochs=1, batch_size=128, limit=200"
    assert [row["epoch"] for row in result.history] == [1]
    assert isinstance(result.model, torch.nn.Module)
    assert not result.model.training
    same = cnnlab.train(replace(RECIPES["digits"], epochs=1, batch_size=128, limit=200), progress="none")
    assert same.summary["loss"] == result.summary["loss"]
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(cnnlab.load_model(result.run)(x), result.model(x))


@pytest.mark.parametrize(("keyword", "near"), [("epoch", "epochs"), ("lr", "learning_rate"), ("momentun", "momentum")])
def test_an_unknown_keyword_names_its_near_neighbours(keyword: str, near: str) -> None:
    for call in (cnnlab.train, cnnlab.loader, cnnlab.train_seeds):
        with pytest.raises(CnnlabError) as error:
            call(**{keyword: 3})  # type: ignore[operator]
        assert near in str(error.value)


def test_the_loader_gives_what_a_training_sees() -> None:
    batches = cnnlab.loader("digits", batch_size=100)
    assert len(batches) == 12
    assert batches.classes == list("0123456789")
    first = list(batches)
    x, y = first[0]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((100, 1, 28, 28), torch.float32, (100,), torch.int64)
    assert sum(len(y) for _, y in first) == 1151
    second = list(batches)  # the next epoch
    assert not torch.equal(first[0][0], second[0][0])
    again = list(cnnlab.loader("digits", batch_size=100))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    # without augmentation, the pixels are those of the split, normalized to mean 0 and deviation 1
    plain = torch.cat([x for x, _ in cnnlab.loader("digits", shift=0)])
    assert plain.mean().abs() < 0.05


def test_the_loader_of_other_splits_is_in_order() -> None:
    images = cnnlab.load_images("digits", "test")
    assert images is not None
    test = cnnlab.loader("digits", "test")
    assert torch.equal(torch.cat([y for _, y in test]), images.labels)
    assert torch.equal(torch.cat([x for x, _ in test]), test.preprocessing(images.images))
    assert sum(len(y) for _, y in cnnlab.loader("digits", "validation")) == 287
    with pytest.raises(CnnlabError, match="eval_split"):
        cnnlab.loader("digits", "validation", eval_split="test", val_fraction=0.0)
    with pytest.raises(CnnlabError, match="validation"):
        cnnlab.loader("digits", "valdation")


def test_the_examples_of_the_documentation_run() -> None:
    text = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 8
    Path("photos").mkdir()
    for file in ("scan.png", "photos/1.png"):
        Image.new("L", (30, 20), 128).save(file)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert len(names["result"].history) == 1  # type: ignore[attr-defined]
    assert len(names["found"]) == 2  # type: ignore[arg-type]
