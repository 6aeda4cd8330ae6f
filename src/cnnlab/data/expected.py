"""How images are read and preprocessed for a recipe: as its published weights expect them, if it has some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cnnlab.data.imageset import ImageSet, Report, SourceOptions, no_report
from cnnlab.data.loader import Preprocessing
from cnnlab.models.external import published_weights
from cnnlab.recipe import Recipe


def options_for(recipe: Recipe, data_dir: Path, *, skip_bad: bool = False, report: Report = no_report) -> SourceOptions:
    """Return how a source's images are read for the recipe: as its published weights expect them, if it has some.

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

    Mean and standard deviation are the images', or those of published weights, which also bring the interpolation and,
    unless the recipe says otherwise, the size.
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
    if moments is not None:
        preprocessing = replace(preprocessing, mean=moments[0], std=moments[1])
    return replace(preprocessing, interpolation=published.interpolation) if published else preprocessing
