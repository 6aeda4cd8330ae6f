"""Features and neighbours: against scikit-learn and the head's input; prototypes."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from cnnlab import CnnlabError, ImageSet, Run, build_model, load_images, load_model
from cnnlab.inspect.neighbours import Gallery, features


def test_features_are_the_input_of_the_head() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 28, 28)
    model = build_model("lenet", image_size=28)
    with torch.no_grad():
        assert torch.equal(model[-1](features(model, x)), model.eval()(x))
    nin = build_model("nin-small", image_size=28).eval()
    *_, last = (m for m in nin.modules() if isinstance(m, nn.Conv2d))
    inputs: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda m, args: inputs.append(args[0].mean((2, 3))))
    assert torch.allclose(features(nin, x), inputs[0])
    for name in ("airbench-small", "resnet18-small", "densenet"):
        assert features(build_model(name, image_size=32), torch.rand(2, 1, 32, 32)).ndim == 2
    with pytest.raises(CnnlabError, match="features"):
        features(nn.Flatten(), x)


def test_neighbours_match_scikit_learn_and_prototypes_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    found, labels = torch.randn(50, 8, generator=generator), torch.arange(50) % 3
    images = ImageSet(
        torch.zeros(50, 1, 4, 4, dtype=torch.uint8), labels, [f"{i}.png" for i in range(50)], list("abcd")
    )
    gallery = Gallery.of(images, found.split(7))
    queries = torch.randn(4, 8, generator=generator)
    mean = found.mean(0)
    distances, indices = NearestNeighbors(n_neighbors=5, metric="cosine").fit(found - mean).kneighbors(queries - mean)
    nearest = gallery.nearest(queries, 5)
    assert [[n.index for n in row] for row in nearest] == indices.tolist()
    assert [[n.distance for n in row] for row in nearest] == [
        pytest.approx(row, abs=1e-6) for row in distances.tolist()
    ]
    assert all(n.id == f"{n.index}.png" and n.label == "abc"[n.index % 3] for row in nearest for n in row)
    assert len(gallery.nearest(queries, 500)[0]) == 50
    *prototypes, missing = gallery.prototypes()
    assert missing is None
    for k, prototype in enumerate(prototypes):
        assert prototype is not None
        unit = gallery.features[labels == k]
        cosine = unit @ unit.mean(0) / unit.mean(0).norm()
        assert prototype.distance == pytest.approx(1 - cosine.max().item(), abs=1e-6)
        assert prototype.index % 3 == k


def test_nearest_neighbours_usually_have_the_same_class(digits_run: Run) -> None:
    classifier, train, test = load_model(digits_run), load_images("digits", "train"), load_images("digits", "test")
    assert train is not None
    assert test is not None

    def features_of(images: ImageSet) -> torch.Tensor:
        return features(classifier.network, classifier.preprocessing(images.images))

    nearest = Gallery.of(train, [features_of(train)]).nearest(features_of(test), 1)
    same = [row[0].label == test.classes[k] for row, k in zip(nearest, test.labels.tolist(), strict=True)]
    assert sum(same) / len(same) > 0.85
