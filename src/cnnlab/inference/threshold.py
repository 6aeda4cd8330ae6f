"""The threshold for "none of these": an image whose top probability is lower belongs to none of the classes.

It is chosen on the run's validation images for a given precision or coverage, and saved in the run as threshold.json.
C. K. Chow, On optimum recognition error and reject tradeoff, IEEE Trans. Information Theory 16 (1970).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.inference.evaluation import RunEvaluation, evaluate_run
from cnnlab.inference.run_images import check_held_out
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_checked
from cnnlab.io.text import plural
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.intervals import Interval, wilson
from cnnlab.training.locks import locked
from cnnlab.training.runs import THRESHOLD, Run


@dataclass(frozen=True)
class Threshold:
    """A threshold for "none of these", and its effect on `images` validation images.

    accepted: number of images whose top probability reaches it; correct: number of correct predictions among them.
    wanted: precision or coverage, whichever was required; value: the required value.
    """

    weights: str
    temperature: float
    threshold: float
    wanted: str
    value: float
    images: int
    accepted: int
    correct: int

    @property
    def precision(self) -> float:
        """The fraction of the accepted images that are predicted correctly."""
        return self.correct / self.accepted

    @property
    def coverage(self) -> float:
        """The fraction of the images that are accepted."""
        return self.accepted / self.images

    @property
    def intervals(self) -> dict[str, Interval]:
        """The 95% intervals of precision and coverage."""
        return {
            "precision": wilson(self.correct, self.accepted),
            "coverage": wilson(self.accepted, self.images),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "precision": self.precision, "coverage": self.coverage, "intervals": self.intervals}

    def __str__(self) -> str:
        rejected = self.images - self.accepted
        (low, high), (least, most) = self.intervals.values()
        none = f"{self.threshold:.4f} (below it: none of these)" if self.threshold else "none; no image is rejected"
        return "\n".join([
            f"threshold for {self.wanted} {self.value:g}: {none}",
            f"precision {self.precision:.4f} ({low:.3f}-{high:.3f}): {self.correct:,} of {self.accepted:,} accepted "
            "images are correct",
            f"coverage {self.coverage:.4f} ({least:.3f}-{most:.3f}): {rejected:,} of {plural(self.images, 'image')} "
            "rejected",
            "note: measured on the validation images that chose the threshold, so slightly optimistic; 95% intervals",
        ])  # fmt: skip


def set_threshold(
    name: Run | str | Path,
    *,
    precision: float | None = None,
    coverage: float | None = None,
    model: Network | None = None,
    data: Any = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    threads: int | None = None,
) -> Threshold:
    """Choose a run's threshold for "none of these" on its validation images, and save it in the run's folder.

    Give either `precision` or `coverage`, above 0 and at most 1. precision: the required fraction of correct
    predictions among accepted images; of the thresholds that reach it, the one that accepts the most images is chosen.
    coverage: the required fraction of accepted images; 1 rejects nothing. Other arguments: see `evaluate_run`. Raise
    CnnlabError, also if no threshold reaches the precision; the earlier threshold is then kept.
    """
    run = name if isinstance(name, Run) else runs.open_run(name, runs_dir)
    if (precision is None) == (coverage is None):
        raise CnnlabError("give either precision or coverage, for example precision=0.99")
    for what, value in (("precision", precision), ("coverage", coverage)):
        if value is not None and not 0 < value <= 1:
            raise CnnlabError(f"{what} {value:g}: must be above 0 and at most 1")
    if run.summary() is None:
        raise CnnlabError(f"{run.path} is not finished; continue it first: {run.resume_call}")
    check_held_out(run)
    found = evaluate_run(
        run, model=model, data=data, split="validation", device=device, data_dir=data_dir, skip_bad=skip_bad,
        threads=threads, threshold=0.0,
    )  # fmt: skip  # the earlier threshold is not read: it may be damaged, and is replaced
    if found.other:
        raise CnnlabError(f"the images of {found.data} are not those of {run.path}; name where its own are now")
    chosen = _chosen(found, precision, coverage)
    with locked(run.path):
        try:
            write_checked(run.path / THRESHOLD, asdict(chosen))
        except OSError as error:
            raise CnnlabError(f"cannot write {run.path / THRESHOLD}: {reason(error)}") from error
    return chosen


def _chosen(found: RunEvaluation, precision: float | None, coverage: float | None) -> Threshold:
    confidence, predicted = found.result.probability, found.result.predicted
    assert found.images is not None
    assert confidence is not None
    assert predicted is not None
    wanted, value = ("precision", precision) if precision is not None else ("coverage", coverage)
    assert value is not None
    threshold, accepted, correct = choose(confidence, predicted.eq(found.images.labels), wanted, value)
    weights, temperature = found.weights.name, found.temperature
    return Threshold(weights, temperature, threshold, wanted, value, len(confidence), accepted, correct)


def choose(confidence: Tensor, correct: Tensor, wanted: str, value: float) -> tuple[float, int, int]:
    """Return the threshold, how many images it accepts, and how many of these are correct.

    confidence: (N,) probability of the predicted class; correct: (N,) bool. The threshold lies halfway between the
    lowest accepted probability and the highest rejected one; it is 0 if all images are accepted. Raise CnnlabError if
    no threshold reaches `value`.
    """
    p, order = confidence.double().sort(descending=True, stable=True)
    n, right = len(p), correct[order].cumsum(0)
    count = torch.arange(1, n + 1)
    ratio = right.double() / count
    ends = torch.cat([p[:-1] > p[1:], torch.tensor([True])])  # images of equal probability are accepted together
    enough = (count if wanted == "coverage" else ratio) >= (value * n if wanted == "coverage" else value) - 1e-9
    places = (ends & enough).nonzero().flatten()
    if not len(places):
        best = torch.where(ends, ratio, -1.0)
        k = int((best == best.max()).nonzero().max())
        raise CnnlabError(
            f"precision {value:g} is not reached on the {plural(n, 'validation image')}: the best is {best[k]:.4f}, "
            f"when accepting the {plural(k + 1, 'image')} with probability {p[k]:.4f} or more; lower the target, "
            "or train a better network"
        )
    at = int(places[0] if wanted == "coverage" else places[-1])
    threshold = float((p[at] + p[at + 1]) / 2) if at + 1 < n else 0.0
    return threshold, at + 1, int(right[at])
