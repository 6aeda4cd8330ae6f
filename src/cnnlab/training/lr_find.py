"""A learning-rate range test: which rate suits a network, its images and its recipe.

L. Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3. The rate rises exponentially
from step to step of the real training, until the loss diverges. The model is then discarded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cnnlab.data.own_augment import Augment
from cnnlab.device.determinism import reproducible
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import write_json
from cnnlab.io.text import plural
from cnnlab.models.own import Network
from cnnlab.recipe import Recipe
from cnnlab.training.choice import choose
from cnnlab.training.loop import Trainer
from cnnlab.training.optim import make_optimizer
from cnnlab.training.progress import Progress
from cnnlab.training.runs import Run
from cnnlab.training.session import Session
from cnnlab.training.start import check_origin, defaults_from_run, new_model, weights_of
from cnnlab.training.train import explained_errors

# The test ends when the smoothed loss exceeds this multiple of the first one, or of the lowest so far.
_DIVERGED, _ABOVE_LOWEST = 1.5, 4.0
_FELL = 0.95  # of the first smoothed loss; the loss counts as fallen only below that
_FRACTION = 1 / 3  # suggested fraction of the rate with the lowest loss; better than a tenth or the whole (docs/log.md)
_REACH = 0.25  # decades of the learning rate to either side over which the losses are averaged


@dataclass(frozen=True)
class RangeTest:
    """The loss at each step of a range test, with its learning rate. Its text is what the command prints.

    smoothed: mean of the losses within a quarter of a decade of each rate. lowest: the rate where it is lowest;
    steepest: where it falls fastest; suggestion: the settings to train with, a learning rate of a third of `lowest`,
    empty if the loss never fell. why: why the test ended.
    """

    model: str
    data: str
    recipe: str
    optimizer: str
    batch_size: int
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    lowest: float
    steepest: float
    suggestion: dict[str, float]
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        first, low = self.smoothed[0], min(self.smoothed)
        lines = [
            f"{self.model}, {self.optimizer}, batch {self.batch_size}: {plural(len(self.rates), 'step')} from a "
            f"learning rate of {self.rates[0]:.2g} to {self.rates[-1]:.2g}; {self.why}",
            f"loss: {first:.3f} at first, lowest at {self.lowest:.2g} ({low:.3f}), steepest at {self.steepest:.2g}",
        ]
        if self.suggestion:
            named = ", ".join(f"{key}={value:g}" for key, value in self.suggestion.items())
            lines.append(f"suggestion: {named}; a third of the rate with the lowest loss")
            if self.lowest == self.rates[-1]:
                lines.append("note: the loss was still falling at the last step; try a larger value of high")
        else:
            lines.append("no suggestion: the loss did not fall; try a wider range, or --set overfit=1")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write lr-find.json and lr-find.png into an existing folder. Raise OSError, CnnlabError."""
        from cnnlab.io import figures  # imports matplotlib, which is slow

        write_json(Path(folder) / "lr-find.json", self.to_dict())
        title = f"{self.model} on {self.data.split('/')[-1]}, recipe {self.recipe}"
        figures.save(Path(folder) / "lr-find.png", figures.range_test(self.to_dict(), title))


class _RisingRate(Trainer):
    """A trainer whose learning rate rises exponentially from `low` to `high` over `count` steps."""

    low, high, count = 0.0, 0.0, 0

    def rate(self, step: int) -> float:
        return float(self.low * (self.high / self.low) ** (step / (self.count - 1)))


def lr_find(
    recipe: Recipe | str | Network | None = None,
    data: Any = None,
    *,
    model: str | Network | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    init_from: Run | str | Path | None = None,
    runs_dir: str | Path = "runs",
    progress: str = "auto",
    augment: Augment | None = None,
    **settings: Any,
) -> RangeTest:
    """Test learning rates from `low` to `high` over `steps` training steps. No run is created; no test image is read.

    With muon, `other_learning_rate` rises in proportion. Other arguments: see `train`. Raise CnnlabError,
    KeyboardInterrupt.
    """
    if not 0 < low < high <= 1000:
        raise CnnlabError(f"learning rates from {low:g} to {high:g}: the first must be above 0 and below the second")
    if not 10 <= steps <= 100_000:
        raise CnnlabError(f"steps={steps}: must lie between 10 and 100,000")
    if init_from is not None and recipe is None:
        model, data, settings = defaults_from_run(init_from, runs_dir, model, data, settings)
    recipe, network, images, given = choose(recipe, model, data, settings)
    if recipe.eval_split == "test":
        recipe = replace(recipe, eval_split="train")  # leaves the training images the same
    with Session(device, threads, data_dir, skip_bad, progress, None, network, images, augment) as session:
        session.given = given
        session.origin = weights_of(init_from, runs_dir) if init_from is not None else None
        recipe = session.load_data(recipe)
        check_origin(session, recipe)
        with session.ctrl_c:
            plan = session.plan(recipe, {})
            with reproducible(recipe.seed, plan.threads), explained_errors(session, recipe):
                run = Run(Path(), recipe, session.run_info(recipe))  # never written
                network_ = new_model(session, run).to(session.device).to(memory_format=plan.memory_format)
                optimizer = make_optimizer(network_, recipe, plan.precision)
                trainer = _RisingRate(session, run, plan, network_, optimizer, None, Progress())
                trainer.low, trainer.high, trainer.count = low, high, steps
                losses = list(_losses(trainer, session))
    return _result(recipe, [trainer.rate(step) for step in range(len(losses))], losses, steps)


def _losses(trainer: _RisingRate, session: Session) -> Iterator[float]:
    """Yield the loss of each step, until it diverges or becomes NaN or Inf."""
    trainer.train_mode()
    endless = (
        (x, y, batches.images)
        for epoch in itertools.count()
        for batches in [trainer.batches(epoch, None)]
        for x, y in batches
    )
    average, smoothed = 0.0, list[float]()
    for step, (x, y, images) in enumerate(itertools.islice(endless, trainer.count)):
        loss = trainer.update(x, y, step, images)[0].item()
        session.display.read("testing learning rates", step + 1, trainer.count)
        session.ctrl_c.check()
        if not math.isfinite(loss):
            return
        yield loss
        average = 0.9 * average + 0.1 * loss
        smoothed.append(average / (1 - 0.9 ** (step + 1)))
        if smoothed[-1] > min(_DIVERGED * smoothed[0], _ABOVE_LOWEST * min(smoothed)):
            return


def _result(recipe: Recipe, rates: list[float], losses: list[float], steps: int) -> RangeTest:
    if len(losses) < 3:
        raise CnnlabError(f"the loss diverged within {plural(len(losses), 'step')}; start at a lower learning rate")
    where = [math.log10(rate) for rate in rates]
    smoothed = []
    for middle in where:
        near = [loss for place, loss in zip(where, losses, strict=True) if abs(place - middle) <= _REACH]
        smoothed.append(sum(near) / len(near))
    lowest = min(range(len(rates)), key=smoothed.__getitem__)
    steepest = min(range(max(1, lowest)), key=lambda i: smoothed[i + 1] - smoothed[max(0, i - 1)])
    suggestion = {}
    if smoothed[lowest] < _FELL * smoothed[0]:
        suggestion["learning_rate"] = _rounded(rates[lowest] * _FRACTION)
        if recipe.optimizer == "muon":  # it rose in proportion
            factor = suggestion["learning_rate"] / recipe.learning_rate
            suggestion["other_learning_rate"] = _rounded(recipe.other_learning_rate * factor)
    return RangeTest(
        recipe.model, recipe.data, recipe.name, recipe.optimizer, recipe.batch_size, rates, losses, smoothed,
        rates[lowest], rates[steepest], suggestion,
        "all steps were run" if len(losses) == steps else "the loss diverged there",
    )  # fmt: skip


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
