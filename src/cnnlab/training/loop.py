"""The training loop: `train_epochs` calls `train_one_epoch`, which calls `Trainer.update`, which calls `train_step`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.data.augment import Augmentation
from cnnlab.data.imageset import Report
from cnnlab.data.loader import Batches, Loader
from cnnlab.device.determinism import random_state, set_random_state
from cnnlab.device.precision import grad_scaler
from cnnlab.device.timing import synchronize
from cnnlab.models.own import is_own
from cnnlab.training import runs
from cnnlab.training.average import Average, averaged_weights
from cnnlab.training.checkpoint import save_weights
from cnnlab.training.checkpointer import Checkpointer
from cnnlab.training.cuda_graph import make_step
from cnnlab.training.evaluate import Evaluation, evaluate
from cnnlab.training.events import Events
from cnnlab.training.finetune import FrozenBody, find_head, freeze_batch_norm
from cnnlab.training.guard import NonFinite, NonFiniteMonitor
from cnnlab.training.muon import Muon
from cnnlab.training.optim import fill_momentum, learning_rate, set_learning_rate, size_in_epoch
from cnnlab.training.plan import Plan, prepare_model
from cnnlab.training.progress import Meter, Position, Progress, learned, out_of_patience
from cnnlab.training.replica import Replica
from cnnlab.training.runs import Run
from cnnlab.training.session import OnEpoch, Session
from cnnlab.training.step import GuardedStep, train_step


class Trainer:
    """The model with its optimizer, its step and its batches."""

    def __init__(
        self,
        session: Session,
        run: Run,
        plan: Plan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        progress: Progress,
    ) -> None:
        recipe, device, size = run.recipe, session.device, session.preprocessing.image_size
        self.run, self.recipe, self.plan, self.device, self.image_size = run, recipe, plan, device, size
        self.num_classes = len(session.train_set.classes)
        self.model, self.optimizer, self.average = model, optimizer, average
        self.train_loader = Loader(
            session.train_set,
            session.preprocessing,
            recipe.batch_size,
            device,
            augmentation=Augmentation.of(recipe),
            balance=recipe.balance,
            own=None if recipe.overfit else session.augment,
            passes=recipe.passes,
            memory_format=plan.memory_format,
            world=session.world,
        )
        # An evaluation keeps nothing for a backward pass, so small images fit in larger batches.
        eval_batch = 1000 if size <= 64 else recipe.batch_size
        self.eval_loader = Loader(
            session.eval_set, session.preprocessing, eval_batch, device, memory_format=plan.memory_format
        )
        self.steps_per_epoch = len(self.train_loader)
        self.steps = recipe.epochs * self.steps_per_epoch
        code = f"{plan.values}, {recipe.batch_size} images of {size} pixels on {device}"
        self._fast_model = prepare_model(model, plan.compile, code)
        self.scaler = grad_scaler(device, plan.precision, progress.scaler)
        skip = recipe.on_nan == "skip"
        micro = recipe.micro_batch
        self._guard = GuardedStep(self.scaler, skip_nonfinite=skip, micro_batch=micro) if skip or self.scaler else None
        self._plain_step = partial(train_step, micro_batch=micro) if micro else train_step
        self._step = self._guard or make_step(self._plain_step, plan, device, session.display.message)
        self.monitor = NonFiniteMonitor(device, self.steps_per_epoch, skip)
        self._head = find_head(model, session.other_classes(recipe)) if recipe.freeze_epochs else []
        self.frozen: FrozenBody | None = None
        self.world = session.world
        self._replica: Replica | None = None  # of the model trained now, if several processes train it
        if isinstance(optimizer, Muon):
            optimizer.world = self.world
        self.setup_seconds = 0.0  # spent on computing features; the next row includes them

    def start_epoch(self, epoch: int, report: Report) -> None:
        """Freeze all layers but the head for the first epochs; unfreeze them afterwards.

        While they are frozen, `frozen` is trained and evaluated in place of the model. report: called while features
        are computed; may raise.
        """
        if epoch >= self.recipe.freeze_epochs and self.frozen is not None:
            self.frozen.end()
            fill_momentum(self.optimizer)  # so far only the head has some
            self.frozen = self._replica = None
        elif epoch < self.recipe.freeze_epochs and self.frozen is None:
            started = time.perf_counter()
            loaders = self.train_loader, self.eval_loader
            self.frozen = FrozenBody(self.model, self._head, *loaders, self.plan.precision, report)
            self.setup_seconds = time.perf_counter() - started
        if self.world.size > 1 and self._replica is None:
            model = self.frozen.model if self.frozen is not None else self._fast_model
            self._replica = Replica(
                model, self.world, synced=self.recipe.sync_batch_norm, unused=is_own(self.recipe.model)
            )

    def batches(self, epoch: int, position: Position | None) -> Batches:
        """Return the batches of an epoch (from 0) that are left at `position`."""
        start = position.batches if position else None
        if self.frozen is not None:
            return self.frozen.train_loader.shuffled(self.recipe.seed, epoch, start=start)
        size = size_in_epoch(self.recipe, self.image_size, epoch)
        return self.train_loader.shuffled(self.recipe.seed, epoch, size, start)

    def train_mode(self) -> None:
        """Put the model, and its copy with fast layers, into training mode."""
        if self.frozen is not None:
            self.frozen.train_mode()
            return
        for model in (self.model, self._replica or self._fast_model):
            model.train()
            if self.recipe.freeze_batch_norm:
                freeze_batch_norm(model)

    def evaluate(self, after_batch: Callable[[], None]) -> Evaluation:
        """Evaluate the model, or its averaged weights, on the evaluation images. after_batch: see `evaluate`."""
        model, loader = self.model, self.eval_loader
        if self.frozen is not None:
            model, loader = self.frozen.model, self.frozen.eval_loader
        self.take_buffers()
        with averaged_weights(self.average):
            return evaluate(model, loader, self.num_classes, after_batch, self.plan.precision, world=self.world)

    def take_buffers(self) -> None:
        """Take over the first process's running statistics. Each process has its own, but only those are saved."""
        if self.world.size > 1:
            averaged = self.average.tensors if self.average is not None else {}
            buffers = dict(self.model.named_buffers())
            self.world.broadcast_from_first(
                [*buffers.values(), *(averaged[name] for name in buffers if name in averaged)]
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of update number `step` (from 0)."""
        return learning_rate(self.recipe, step, self.steps)

    def update(self, x: Tensor, y: Tensor, step: int, images: int) -> tuple[Tensor, Tensor]:
        """Make update number `step` (from 0). Return the mean loss and the number of correct predictions.

        x, y: this process's part of the batch, which has `images` in all; the result is for all of them.
        """
        recipe = self.recipe
        set_learning_rate(self.optimizer, self.rate(step))
        # Other shapes would be compiled again: the last batch of an epoch, and images that still grow.
        usual = len(y) == recipe.batch_size and x.shape[2] == self.image_size
        model, step_once = self._fast_model if usual else self.model, self._step
        if self.frozen is not None:  # a CUDA graph of this step would still leave out the frozen layers later
            model, step_once = self.frozen.model, self._guard or self._plain_step
        if self._replica is not None:
            model = self._replica
            self._replica.start_batch(images)
            self.world.seed_step(recipe.seed, step)
        loss, correct = step_once(model, self.optimizer, x, y, recipe.label_smoothing, self.plan.precision)
        if self.average is not None and (self._guard is None or self._guard.updated):
            self.average.after_step(step)
        return loss, correct


def train_epochs(trainer: Trainer, checkpointer: Checkpointer, session: Session, events: Events | None) -> None:
    """Train the epochs that are left; each counts once it is saved.

    Raise NonFinite for NaN or Inf, KeyboardInterrupt at a safe place after Ctrl-C.
    """
    recipe, progress = trainer.recipe, checkpointer.saved
    rows = list(progress.rows)

    def report(what: str, done: int, total: int) -> None:
        if trainer.world.size == 1:
            session.ctrl_c.check()
        session.display.read(what, done, total)

    if len(rows) < recipe.epochs and not progress.stopped:
        trainer.start_epoch(len(rows), report)  # first, since computing features shows a progress of its own
    session.display.start(recipe, trainer.train_loader, rows)
    for epoch in range(len(rows), recipe.epochs):
        if progress.stopped:
            break
        trainer.start_epoch(epoch, report)
        meter = Meter(trainer.device, progress.position)
        batches = trainer.batches(epoch, progress.position)
        train_one_epoch(trainer, checkpointer, session, progress, epoch, meter, batches)
        row = finish_epoch(trainer, checkpointer, session, progress, epoch, meter, batches)
        progress = save_epoch(trainer, checkpointer, progress, row, meter, events)
        session.display.epoch(row)
        on_epoch = session.on_epoch
        ends = on_epoch is not None and trainer.world.from_first(partial(_ends, on_epoch, row, trainer.device))
        if ends and len(progress.rows) < recipe.epochs:
            progress = replace(progress, stopped=True)
            checkpointer.save(progress, wait=True)


def train_one_epoch(
    trainer: Trainer,
    checkpointer: Checkpointer,
    session: Session,
    progress: Progress,
    epoch: int,
    meter: Meter,
    batches: Batches,
) -> None:
    """Make the updates of an epoch, and save in between if it is long."""
    ctrl_c = session.ctrl_c
    step = epoch * trainer.steps_per_epoch + meter.steps
    trainer.train_mode()
    for x, y in batches:
        meter.compute.start()
        loss, correct = trainer.update(x, y, step, batches.images)
        if trainer.monitor.check_loss(step, loss):
            meter.add(loss, correct, batches.images)
        else:
            meter.skip()
        meter.compute.stop()
        step += 1
        session.display.step(epoch, meter.images, meter.sums)
        if trainer.world.any(ctrl_c.requested):  # all stop after the same step
            ctrl_c.request()
        if checkpointer.due(step) or ctrl_c.requested:
            trainer.monitor.check(step - 1, trainer.model)  # waits for the device, as every save does
            position = meter.position(batches)
            checkpointer.save(_at(progress, trainer, position), wait=ctrl_c.requested)
        ctrl_c.check()


def finish_epoch(
    trainer: Trainer,
    checkpointer: Checkpointer,
    session: Session,
    progress: Progress,
    epoch: int,
    meter: Meter,
    batches: Batches,
) -> dict[str, Any]:
    """Check and evaluate the model after an epoch. Return the epoch's row of figures."""
    recipe, key, per_epoch = trainer.recipe, trainer.recipe.key, trainer.steps_per_epoch
    synchronize(trainer.device)  # the epoch's one wait for the device
    meter.stop()
    last = (epoch + 1) * per_epoch - 1
    trainer.monitor.check(last, trainer.model)
    if not meter.images:
        raise NonFinite("the loss was NaN or Inf throughout the epoch", last, per_epoch)
    loss, accuracy = meter.means()
    started = time.perf_counter()
    try:
        # One of several processes must not stop alone: all do after the next step.
        measured = trainer.evaluate(session.ctrl_c.check if trainer.world.size == 1 else lambda: None)
    except KeyboardInterrupt:
        if not session.ctrl_c.forced:  # else the averaged weights may be only partly swapped in
            checkpointer.save(_at(progress, trainer, meter.position(batches)), wait=True)
        raise
    for name, value in (("training", loss), (recipe.eval_split, measured.loss)):
        if not math.isfinite(value):
            raise NonFinite(f"the {name} loss became {value:g}", last, per_epoch)
    compute_seconds, scores = meter.compute.seconds(), measured.scores
    few = trainer.num_classes <= runs.MOST_COUNTED
    return {
        "epoch": epoch + 1,
        "learning_rate": trainer.rate(last),  # of the last update
        "loss": loss,
        "train_acc": accuracy,
        f"{key}_loss": measured.loss,
        f"{key}_acc": measured.accuracy,
        f"{key}_balanced_acc": scores.balanced_accuracy,
        f"{key}_macro_f1": scores.macro_f1,
        **({f"{key}_correct": scores.correct, f"{key}_predicted": scores.predicted} if few else {}),
        "never_predicted": measured.never_predicted,
        "images": meter.images,
        **({"skipped_updates": meter.skipped} if recipe.on_nan == "skip" else {}),
        "train_seconds": meter.train_seconds,
        "compute_seconds": compute_seconds,
        "evaluation_seconds": time.perf_counter() - started,
        "images_per_second": meter.images / meter.train_seconds,
        "examples_per_second": meter.images / compute_seconds,
    }


def save_epoch(
    trainer: Trainer,
    checkpointer: Checkpointer,
    progress: Progress,
    row: dict[str, Any],
    meter: Meter,
    events: Events | None,
) -> Progress:
    """Save weights, rows and checkpoint after an epoch. Return the progress that is then on the disk."""
    folder = trainer.run.path
    best_before = progress.best
    progress = progress.finish(row, trainer.recipe)
    if out_of_patience(progress.rows, trainer.run) or learned(progress.rows, trainer.recipe):
        progress = replace(progress, stopped=True)
    if events is None:  # the first process writes
        return _at(progress, trainer, None)
    with checkpointer.write_errors():
        with averaged_weights(trainer.average):
            if progress.best != best_before:  # not best_epoch: it may name weights that were saved before a crash
                about = {"figure": progress.best, "epoch": progress.best_epoch}
                save_weights(folder / "best.safetensors", trainer.model, about)
            save_weights(folder / "last.safetensors", trainer.model)
        row["seconds"] = time.perf_counter() - meter.started + trainer.setup_seconds
        trainer.setup_seconds = 0.0
        runs.write_metrics(trainer.run, progress.rows)
        events.add(row)
    # Last: a process that dies before this line repeats the epoch and writes the same files again.
    progress = _at(progress, trainer, None)
    checkpointer.save(progress, wait=True)
    return progress


def _at(progress: Progress, trainer: Trainer, position: Position | None) -> Progress:
    return replace(progress, position=position, scaler=trainer.scaler.state_dict() if trainer.scaler else None)


def _ends(on_epoch: OnEpoch, row: dict[str, Any], device: torch.device) -> bool:
    """Return whether the caller's `on_epoch` ends the training."""
    # Random numbers that the caller draws must not change the training.
    tensors, values = random_state(device)
    try:
        return on_epoch(dict(row)) is False
    finally:
        set_random_state(device, tensors, values)
