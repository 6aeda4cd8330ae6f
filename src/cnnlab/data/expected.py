"""How images are read and preprocessed for a recipe: as its published weights, if any, expect them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cnnlab.data.imageset import ImageSet, Report, SourceOptions, no_report
from cnnlab.data.loader import Preprocessing
from cnnlab.io.errors import CnnlabError
from cnnlab.models.external import published_weights
from cnnlab.recipe import Recipe


def options_for(recipe: Recipe, data_dir: Path, *, skip_bad: bool = False, report: Report = no_report) -> SourceOptions:
    """Return the options to read a source's images as the recipe's published weights, if any, expect them.

    Raise CnnlabError for an unknown network or tag of published weights.
    """
    published = published_weights(recipe.model)
    return SourceOptions(
        data_dir=data_dir,
        image_size=recipe.image_size,
        fit=recipe.fit,
        background=recipe.background,
        columns=recipe.columns,
        skip_bad=skip_bad,
        report=report,
        size_limit=published.size if published else 0,
        interpolation=published.interpolation if published else "bilinear",
    )


def preprocessing_for(recipe: Recipe, train_set: ImageSet) -> Preprocessing:
    """Return the preprocessing of the recipe for these training images.

    Mean and standard deviation come from the images or from published weights. The latter also set the interpolation
    and, unless the recipe sets it, the size. Raise CnnlabError if the recipe shifts images by their whole size.
    """
    published = published_weights(recipe.model)
    size = recipe.image_size
    if published and not size:
        size = published.input_size(train_set.images.shape[2])
    moments = published.moments(train_set.images.shape[1]) if published and recipe.normalize else None
    preprocessing = Preprocessing.of(
        train_set.images,
        image_size=size,
        fit=recipe.fit,
        normalize=recipe.normalize and moments is None,
        decoding=train_set.decoding,
    )
    if recipe.shift >= preprocessing.image_size:
        side = preprocessing.image_size
        raise CnnlabError(f"shift={recipe.shift} is at least the images' {side} pixels; choose a smaller one")
    if moments is not None:
        preprocessing = replace(preprocessing, mean=moments[0], std=moments[1])
    return replace(preprocessing, interpolation=published.interpolation) if published else preprocessing
