"""Temperature scaling for calibrated probabilities: of images predicted with probability 0.8, about 80% are correct.

C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
The logits are divided by one number, the temperature, which is fitted on the validation images. That changes how
confident the network is in a class, never the order of the classes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.data.loader import Loader
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores
from cnnlab.device.precision import exact_float32
from cnnlab.training.diagnosis import active_units
from cnnlab.training.evaluate import calibration_error, logits, probabilities
from cnnlab.training.results import layout_of, trained_model
from cnnlab.training.runs import HIGHEST, LOWEST, Run
from cnnlab.training.session import Session

_STEPS = 60
_LEAST_LOGIT = -1e4  # relative to the largest: a network may rule out classes with -inf


@dataclass(frozen=True)
class Calibration:
    """The calibration of `weights`, a file of the run, on `images` validation images.

    nll: mean negative log-likelihood; ece: expected calibration error (15 bins); `_before`: without the temperature. It
    was fitted on the same images, so the figures are slightly optimistic.
    """

    weights: str
    images: int
    temperature: float
    nll_before: float
    nll: float
    ece_before: float
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for summary.json."""
        return asdict(self)


def calibrate(run: Run, found: Tensor, labels: Tensor) -> Calibration:
    """Fit the temperature of the run's weights. found: logits (N, K) of the validation images; labels: (N,) int64."""
    temperature = fit_temperature(found, labels)
    before, after = (_errors(found, labels, t) for t in (1.0, temperature))
    if after[0] > before[0]:  # with few images, `fit_temperature` errs towards less certain probabilities
        temperature, after = 1.0, before
    return Calibration(run.weights().name, len(labels), temperature, before[0], after[0], before[1], after[1])


def fit_temperature(found: Tensor, labels: Tensor) -> float:
    """Return the temperature, 0.05 to 20, that minimises the negative log-likelihood of logits (N, K).

    The labels are smoothed by 1 / (N + 1), since images that are all predicted correctly would otherwise lead to
    probabilities of 1. The loss is convex in the inverse of the temperature; Newton's method finds the minimum in
    float64, with bisection where a step leaves the bracket.
    """
    z = found.double()
    z = (z - z.amax(1, keepdim=True)).clamp_min(_LEAST_LOGIT)
    share = 1 / (len(z) + 1)
    wanted = ((1 - share) * z.gather(1, labels[:, None])[:, 0] + share * z.mean(1)).mean().item()
    low, high, s = 1 / HIGHEST, 1 / LOWEST, 1.0  # s is the inverse temperature
    for _ in range(_STEPS):
        p = (s * z).softmax(1)
        mean = (p * z).sum(1)
        slope = mean.mean().item() - wanted
        if slope == 0:
            break
        low, high = (low, s) if slope > 0 else (s, high)
        curvature = ((p * z * z).sum(1) - mean * mean).mean().item()
        step = s - slope / curvature if curvature > 0 else math.nan
        before, s = s, step if low < step < high else math.sqrt(low * high)
        if abs(s - before) <= 1e-9 * s:
            break
    return 1 / s


def _errors(found: Tensor, labels: Tensor, temperature: float) -> tuple[float, float]:
    """Return the negative log-likelihood and the expected calibration error."""
    z = (found.double() / temperature).clamp_min(-1e30)
    confidence, predicted = probabilities(found, temperature).amax(1), found.argmax(1)
    return F.cross_entropy(z, labels).item(), calibration_error(confidence, predicted == labels)


def held_out_logits(session: Session, run: Run) -> tuple[Tensor, float]:
    """Return the logits (N, K) float32 of the session's evaluation images, and the fraction of dead units.

    Both are computed with the weights that the run predicts with. Dead units: see `active_units`.
    """
    layout, device, size = layout_of(run), session.device, session.preprocessing.image_size
    with reproducible(0, session.threads or available_cores()), exact_float32(), torch.inference_mode():
        model = trained_model(run, run.weights(), session.network).to(device).to(memory_format=layout)
        batch = 1000 if size <= 64 else run.recipe.batch_size
        loader = Loader(session.eval_set, session.preprocessing, batch, device, memory_format=layout)
        with active_units(model) as dead:
            found = torch.cat([logits(model, x).cpu() for x, _ in loader])
            return found, dead()
