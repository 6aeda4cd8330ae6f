"""`digits`: handwritten digits that come with scikit-learn, so that a first training needs no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (the 1,797 images
of its test part).
"""

from __future__ import annotations

import numpy as np
import torch

from cnnlab.data.imageset import ImageSet, SourceOptions, stratified_split

# One fifth is set aside as the test set, with a fixed seed: a recipe's split_seed does not change it.
_TEST_FRACTION, _TEST_SEED = 0.2, 1998


def load(split: str, options: SourceOptions) -> ImageSet | None:  # noqa: ARG001 - nothing to choose here
    """Return the `train` (1,438) or `test` (359) split: (N, 1, 8, 8) uint8; there is no `validation` split."""
    if split == "validation":
        return None
    from sklearn.datasets import load_digits  # slow to import, so only here

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    whole = ImageSet(
        torch.from_numpy(pixels).unsqueeze(1),
        torch.from_numpy(bunch.target.astype(np.int64)),
        [f"digits/{i}" for i in range(len(pixels))],
        [str(k) for k in bunch.target_names],
    )
    train, test = stratified_split(whole.labels, _TEST_FRACTION, _TEST_SEED)
    return whole.take(test if split == "test" else train)
