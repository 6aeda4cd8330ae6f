"""What the trainings of one call share: device, display, images and plan."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from cnnlab.data import SourceOptions, absolute, copies_in_test, data_folder, stratified_subset
from cnnlab.data.expected import options_for, preprocessing_for
from cnnlab.data.near_duplicates import shared
from cnnlab.data.own import OwnImages
from cnnlab.data.own_augment import Augment, OwnAugmentation
from cnnlab.data.splits import Pool, divide, load_pool
from cnnlab.data.survey import fitted_recipe
from cnnlab.device.hardware import available_cores, check_threads, pick_device
from cnnlab.device.world import World, device_of_rank, joined_world, processes, rank_here
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.interrupt import CtrlC
from cnnlab.io.text import plural
from cnnlab.models import DESCRIPTIONS, MODELS, build_model
from cnnlab.models.airbench import Whitening
from cnnlab.models.external import pretrained_name, published_tag, published_weights
from cnnlab.models.own import Network, build_own, builder_source, check_output
from cnnlab.recipe import Recipe
from cnnlab.training import runs
from cnnlab.training.autotune import choose_plan, expected_seconds, find_batch_size
from cnnlab.training.display import Display, clock, make_display
from cnnlab.training.finetune import batch_norms, freeze_batch_norm
from cnnlab.training.header import balance_lines, class_counts, data_lines, network_lines
from cnnlab.training.optim import size_in_epoch
from cnnlab.training.plan import Plan, Workload, check_compile
from cnnlab.training.replica import can_sync
from cnnlab.training.runs import Run

OnEpoch = Callable[[dict[str, Any]], bool | None]


def same_device(name: str | None) -> str:
    """Return `name` if there is such a device here, else `auto`."""
    try:
        return str(pick_device(name or "auto"))
    except CnnlabError:
        return "auto"


class Session:
    """The device, display, images and plan of one call. Arguments: see `train`. Raise CnnlabError.

    network, images: the caller's own, in place of the recipe's. augment: the caller's, applied after the recipe's.
    """

    def __init__(
        self,
        device: str,
        threads: int | None,
        data_dir: str | Path | None,
        skip_bad: bool,
        progress: str,
        on_epoch: OnEpoch | None = None,
        network: Network | None = None,
        images: OwnImages | None = None,
        augment: Augment | None = None,
    ) -> None:
        check_threads(threads)
        self.device = device_of_rank(pick_device(device))
        self.world = World()  # until the `with` block
        self._connected = contextlib.ExitStack()
        self.on_epoch = on_epoch
        self.network, self.images = network, images
        self.augment = OwnAugmentation(augment) if augment is not None else None
        self.whitening_seconds = 0.0
        self._auto_device = device == "auto"
        self.threads = threads
        self.display: Display = make_display("none" if rank_here() else progress)
        self.ctrl_c = CtrlC()
        self._named_data_dir, self._data_dir = data_dir, data_folder(data_dir)
        self._skip_bad = skip_bad
        self.origin: dict[str, Any] | None = None  # the run that new ones start from
        self.search_test = True  # whether the test images are searched for copies of training images
        self.job = ""  # identifies this call across restarts of its processes, see `World`
        self.given: frozenset[str] | None = None  # see `choose`
        self._introduced = self._announced = False
        self._plan: Plan | None = None
        self._shared: dict[str, int] | None = None

    def __enter__(self) -> Session:
        self.world = self._connected.enter_context(joined_world(self.device))
        if self.world.size > 1 and self.threads is None and self.device.type == "cpu":
            self.threads = max(1, available_cores() // self.world.local_size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.end()
        self._connected.close()

    def continue_as(self, run: Run) -> None:
        """Use the device, threads, data folder and skip_bad that `run` started with, unless others were given."""
        self._data_dir = data_folder(self._named_data_dir or runs.data_dir(run))
        self._skip_bad = self._skip_bad or bool(run.info["data"].get("skip_bad"))
        first = runs.first_session(run)
        if self._auto_device:
            self.device = device_of_rank(pick_device(same_device(first.get("device"))))
        if self.threads is None and "threads" in first:  # also for seeds that are not started yet
            threads = first["threads"] * first.get("processes", 1) // processes()
            self.threads = max(1, min(threads, available_cores()))

    def load_data(self, recipe: Recipe, *, resumed: Run | None = None) -> Recipe:
        """Load the recipe's images and check that its network can be trained on them.

        resumed: the run to resume, whose images must be the same; the check for a compiler is skipped. Return
        the recipe with the absolute path of its data and, if it is a default recipe, fitted to the images.
        """
        recipe = replace(recipe, data=absolute(recipe.data))
        if recipe.init != "pytorch" and (published_tag(recipe.model) or isinstance(self.network, nn.Module)):
            raise CnnlabError(f"init={recipe.init} would overwrite the weights of {recipe.model}; set init=pytorch")
        if resumed is None:
            check_compile(recipe, self.device)
            if self.given is None:
                self._check_frozen(recipe)
        # Before minutes of reading: check that the network exists and takes images of this size.
        if self.network is None and (":" not in recipe.model or recipe.image_size):
            with torch.device("meta"):  # shapes without memory
                build_model(recipe.model, num_classes=10, in_channels=1, image_size=recipe.image_size or 256)
        why: list[str] = []
        if self.given is not None:
            own = self.images.train if self.images else None
            recipe, why = fitted_recipe(recipe, self.given, self._options(recipe), self.device, own)
            self._check_frozen(recipe)
        self._pool: Pool | None = load_pool(recipe, self._options(recipe), self.images)
        self.divide(recipe)
        if resumed is not None:
            self.check_images(resumed, recipe.data)
        if not recipe.folds:
            self._pool = None  # only the other folds need it later
        self._check_batches(recipe, new=resumed is None)
        self.display.end()
        if resumed is None:
            lines = (*data_lines(self.train_set, self.eval_set, recipe), *self.splits.notes)
            for line in (*lines, *balance_lines(self.train_set, recipe.balance), *why):
                self.display.message(line)
        self._plan = None
        return recipe

    def _check_frozen(self, recipe: Recipe) -> None:
        if not recipe.freeze_epochs or published_tag(recipe.model) or self.network is not None or self.origin:
            return
        with torch.device("meta"):
            build_model(recipe.model)  # an unknown name is another mistake
        raise CnnlabError(
            f"freeze_epochs={recipe.freeze_epochs}: {recipe.model} starts from random weights, and all but its last "
            f"layer would stay random; use {pretrained_name(recipe.model)}, or --init-from a run"
        )

    def _options(self, recipe: Recipe) -> SourceOptions:
        return options_for(recipe, self._data_dir, skip_bad=self._skip_bad, report=self.display.read)

    def divide(self, recipe: Recipe) -> None:
        """Split the loaded images into training and evaluation images, as the recipe says."""
        assert self._pool is not None
        self.splits = divide(self._pool, recipe)
        self.train_set, self.eval_set = self.splits.train, self.splits.evaluated
        self.fingerprint = self.train_set.fingerprint()
        self.preprocessing = preprocessing_for(recipe, self.train_set)
        self._shared = None

    def create(self, path: Path, recipe: Recipe) -> Run:
        """Create a run in the new, empty folder `path`; from here on it can be resumed."""
        run = runs.create_run(path, recipe, self.run_info(recipe))
        if not self._introduced:
            for line in network_lines(run):
                self.display.message(line)
            self._introduced = True
        return run

    def run_info(self, recipe: Recipe) -> dict[str, Any]:
        """Return the content of run.json, such as network, images and preprocessing."""
        with torch.device("meta"):
            parameters = sum(p.numel() for p in self.build(recipe).parameters())
        published = published_weights(recipe.model)
        return {
            "model": {
                "name": recipe.model,
                **self._sizes,
                "parameters": parameters,
                **({"builder": self.builder(recipe)} if self.builder(recipe) else {}),
                **({"weights": {"license": published.license, "origin": published.origin}} if published else {}),
            },
            "data": {
                "source": recipe.data,
                "classes": self.train_set.classes,
                # "train" last: with eval_split=train it stays the number of images that are trained on.
                recipe.eval_split: len(self.eval_set),
                "train": len(self.train_set),
                "counts": {recipe.eval_split: class_counts(self.eval_set), "train": class_counts(self.train_set)},
                "passed_over": {kind: len(paths) for kind, paths in self.train_set.passed_over.items()},
                "warnings": list(dict.fromkeys([*self.train_set.warnings, *self.eval_set.warnings])),
                "fingerprint": self.fingerprint,
                "skipped": list(dict.fromkeys([*self.train_set.skipped, *self.eval_set.skipped])),
                "data_dir": str(self._data_dir.absolute()),
                "skip_bad": self._skip_bad,
                **({"split": self.splits.info} if self.splits.info else {}),
            },
            "preprocessing": self.preprocessing.to_dict(),
            **({"augment": self.augment.name} if self.augment else {}),
            **({"from": self.origin} if self.origin else {}),
            **({"job": self.job} if self.job else {}),
        }

    def build(self, recipe: Recipe, *, published: bool = False, classes: int = 0) -> nn.Module:
        """Return the recipe's network for these images, with PyTorch's initial weights, or `published` ones.

        classes: their number. Default: that of the images.
        """
        sizes = {**self._sizes, "num_classes": classes or len(self.train_set.classes)}
        if self.network is not None:
            return build_own(self.network, **sizes)
        return build_model(recipe.model, **sizes, published=published)

    def other_classes(self, recipe: Recipe) -> Callable[[], nn.Module] | None:
        """Return a function that builds the network for one more class; None for a module, which cannot be rebuilt."""
        count = len(self.train_set.classes) + 1
        return None if isinstance(self.network, nn.Module) else lambda: self.build(recipe, classes=count)

    def builder(self, recipe: Recipe) -> str:
        """Return `FILE.py:BUILDER` of a network that is not cnnlab's, or an empty string."""
        added = MODELS.get(recipe.model) if recipe.model not in DESCRIPTIONS else None
        return builder_source(self.network or added) if self.network is not None or added is not None else ""

    def check_images(self, run: Run, data: str) -> None:
        """Raise CnnlabError unless the loaded images of `data` are the ones that `run` started with."""
        if run.info["data"]["fingerprint"] != self.fingerprint:
            raise CnnlabError(f"the images of {data} are not those that {run.path} started with; train a new run")

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "num_classes": len(self.train_set.classes),
            "in_channels": self.preprocessing.channels,
            "image_size": self.preprocessing.image_size,
        }

    def plan(self, recipe: Recipe, first: dict[str, Any]) -> Plan:
        """Return how to compute the recipe's steps here. first: the run's first session; empty for a new run.

        New runs of one call share a plan, even if the measurement cannot be stored.
        """
        if self._plan is not None and not first:
            return self._plan
        plan = self.world.from_first(
            lambda: choose_plan(self._workload(recipe), first, log=self.display.message, check=self.ctrl_c.check)
        )
        if not first:
            self._plan = plan
        return plan

    def announce_time(self, recipe: Recipe, plan: Plan) -> None:
        """Print once how long a long training will take here."""
        if not self._announced:
            self._announced = True
            seconds = expected_seconds(self._workload(recipe), plan)
            if seconds is not None and math.isfinite(seconds):
                self.display.message(f"time: about {clock(seconds)} for {plural(recipe.epochs, 'epoch')}")

    def _workload(self, recipe: Recipe) -> Workload:
        side, world = self.preprocessing.image_size, self.world
        if world.size > 1:  # the work of one process
            recipe = replace(recipe, batch_size=max(1, recipe.batch_size // world.size), compile="off")
        return Workload(
            recipe,
            lambda: self.build(recipe),
            (self.preprocessing.channels, side, side),
            len(self.train_set.classes),
            self.device,
            len(self.train_set) // world.size,
            self.threads,
        )

    def find_batch_size(self, recipe: Recipe) -> Recipe:
        """Return the recipe with a batch size whose steps fit in memory; note it if it was changed."""
        work = self._workload(recipe)
        with self.world.together():
            size = find_batch_size(work)  # for one process
        size = min(self.world.gather(size))
        if size == work.recipe.batch_size:
            return recipe
        size *= self.world.size
        self.display.message(
            f"note: a batch of {recipe.batch_size} does not fit in memory, one of {size} does; the learning "
            f"rate stays {recipe.learning_rate:g}, though smaller batches often need a smaller one"
        )
        return recipe.changed(batch_size=size)

    def shared(self, recipe: Recipe) -> dict[str, int]:
        """Return how many images of each other split are, pixel for pixel, among the training images."""
        if recipe.overfit:  # such a training says nothing about other images
            return {}
        if self._shared is None:
            self._shared = {}
            if recipe.eval_split != "train":  # else they are part of the training images
                self._shared[recipe.eval_split] = len(shared(self.train_set.images, self.eval_set.images))
            if recipe.eval_split != "test" and self.images is None and self.search_test:
                options = SourceOptions(data_dir=self._data_dir, columns=recipe.columns)
                try:
                    count = copies_in_test(recipe.data, self.train_set, options)
                except (CnnlabError, OSError) as error:  # this must not abort the training
                    count = None
                    self.display.message(f"note: the test images were not searched for duplicates: {reason(error)}")
                self._shared |= {} if count is None else {"test": count}
        return self._shared

    def whiten(self, model: nn.Module) -> None:
        """Fit a whitening first layer, if `model` has one, to some of the training images."""
        started = time.perf_counter()
        for layer in model.modules():
            if isinstance(layer, Whitening):
                # Enough images for as many patches as 5,000 images of 32 pixels have.
                count = max(100, 5000 * 32**2 // self.preprocessing.image_size**2)
                some = stratified_subset(self.train_set.labels, min(count, 5000), 0)
                # In float64, which CUDA has and MPS lacks.
                device = self.device if self.device.type == "cuda" else "cpu"
                layer.fit(self.preprocessing(self.train_set.images[some].to(device)))
        self.whitening_seconds = time.perf_counter() - started

    def _smallest_batch(self, recipe: Recipe) -> int:
        """Return the smallest number of images that pass through the network at once."""
        count, piece = len(self.train_set), recipe.micro_batch
        batch = min(recipe.batch_size, count)
        odd = count % 2 or batch % 2  # the last batch, or all
        return 1 if piece == 1 or (piece == 2 and odd) else batch

    def _check_batches(self, recipe: Recipe, *, new: bool) -> None:
        """Check that the network trains on the smallest batch and on every image size.

        Only shapes are computed, except for a network of the caller's own, which may read values. new: no run has
        started; published weights, if any, are loaded once.
        """
        if self.augment is not None:
            self.augment(self.preprocessing.resized(self.train_set.images[:2].to(self.device)), recipe.seed)
        if new and published_tag(recipe.model):
            self.build(recipe, published=True)  # downloaded now, so that no run is created that cannot continue
        where = "meta" if self.network is None else "cpu"
        if self.network is not None:
            check_output(self.build(recipe), recipe.model, **self._sizes)
        with torch.device(where):
            model = self.build(recipe).to(where).train()
            if new and recipe.freeze_batch_norm and self.network is not None and not batch_norms(model):
                raise CnnlabError(
                    f"freeze_batch_norm=true: no layer of {recipe.model} is a batch norm of PyTorch or cnnlab, so none "
                    "would be frozen; set freeze_batch_norm=false"
                )
            if recipe.sync_batch_norm and self.world.size > 1:
                other = [type(layer).__name__ for layer in batch_norms(model) if not can_sync(layer)]
                if other:
                    raise CnnlabError(
                        f"sync_batch_norm=true: {recipe.model} has a batch norm of its own, {other[0]}, which cannot "
                        "be synchronized; set sync_batch_norm=false"
                    )
            if recipe.freeze_batch_norm:
                freeze_batch_norm(model)
            smallest, whole = self._smallest_batch(recipe), self.preprocessing.image_size
            if smallest == 1:
                try:
                    model(torch.zeros(1, self.preprocessing.channels, whole, whole))
                except ValueError as error:  # batch norm over a single value
                    given = (
                        f"micro_batch={recipe.micro_batch}" if recipe.micro_batch else f"batch_size={recipe.batch_size}"
                    )
                    raise CnnlabError(
                        f"{given} with {plural(len(self.train_set), 'training image')}: {recipe.model} normalises over "
                        "the batch; it needs at least 2 images at once: set micro_batch=0, a larger batch_size, or use "
                        "more images"
                    ) from error
            if recipe.start_size > whole:
                raise CnnlabError(f"start_size={recipe.start_size} is larger than the images' {whole}; reduce it")
            for size in sorted({size_in_epoch(recipe, whole, epoch) for epoch in range(recipe.epochs)} - {whole}):
                try:
                    model(torch.zeros(min(smallest, 2), self.preprocessing.channels, size, size))
                except (RuntimeError, ValueError, AssertionError) as error:
                    raise CnnlabError(
                        f"start_size={recipe.start_size}: {recipe.model}, built for {whole} pixels, does not accept "
                        f"images of {size} pixels ({reason(error, 100)}); set start_size=0, or choose a network that "
                        "does, such as resnet18-small"
                    ) from error
