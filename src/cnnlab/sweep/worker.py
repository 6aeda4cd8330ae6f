"""A worker of a sweep: it takes a trial, trains it as an ordinary run, reports the result, and takes the next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cnnlab.io.errors import CnnlabError, out_of_memory, reason
from cnnlab.io.files import remove_torn
from cnnlab.io.text import plural
from cnnlab.recipe import Recipe, metric_label
from cnnlab.sweep.definition import Range, Sweep
from cnnlab.sweep.storage import Locks, StorageLost, explained_storage_errors, open_locks
from cnnlab.training import runs
from cnnlab.training.folders import check_free, new_folder, removed_if_empty
from cnnlab.training.guard import NonFinite
from cnnlab.training.results import Result
from cnnlab.training.session import Session
from cnnlab.training.train import train_run

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_UNPRUNED = 1 / 3  # of a run without pruning: while the learning rate rises, a good trial may look bad
_POLL = 0.5  # seconds between two searches for a trial whose worker has died


@dataclass(frozen=True)
class Machine:
    """Where and how a worker trains: the arguments of `Session`, and the folder of the runs."""

    runs_dir: Path = Path("runs")
    device: str = "auto"
    threads: int | None = None
    data_dir: Path | None = None
    skip_bad: bool = False
    progress: str = "none"

    def session(self) -> Session:
        """Return a session that does not read the test images."""
        session = Session(self.device, self.threads, self.data_dir, self.skip_bad, self.progress)
        session.search_test = False
        return session


def work(sweep: Sweep, machine: Machine, log: Callable[[str], None] = lambda _: None) -> None:
    """Train trials until all are finished, including those of dead workers. Other workers may join and leave.

    log: called with a line at the start and the end of each trial. Raise CnnlabError if a trial cannot be trained here,
    and TrainingInterrupted on Ctrl-C. The same call continues the sweep.
    """
    with explained_storage_errors(sweep.storage), closing(open_locks(sweep.storage, sweep.name)) as locks:
        worker = _Worker(sweep, machine, locks, open_study(sweep, locks), log)
        while (trial := worker.next_trial()) is not None:
            worker.train(trial)


def open_study(sweep: Sweep, locks: Locks) -> Study:
    """Return the sweep's study, a new one if there is none. Raise CnnlabError if it is another sweep's.

    If the file has changed, and no trial has ended or is being trained, the study starts afresh: the change may be a
    correction.
    """
    import optuna

    with locks.claiming():
        for _ in range(2):
            study = optuna.create_study(
                storage=locks.storage,
                study_name=sweep.name,
                direction="minimize" if sweep.minimize else "maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner() if sweep.pruning else optuna.pruners.NopPruner(),
            )
            kept = study.user_attrs.get("definition")
            if kept is None:
                study.set_user_attr("definition", sweep.definition)
            if kept in (None, sweep.definition):
                return study
            differing = [key for key, value in sweep.definition.items() if key != "name" and kept.get(key) != value]
            trials = study.get_trials(deepcopy=False)
            free = [trial.number for trial in trials if not trial.state.is_finished() and locks.take(trial.number)]
            for number in free:
                locks.release(number)
            if len(free) < len(trials):
                raise CnnlabError(
                    f"{sweep.file}: {', '.join(differing[:3]) or 'the recipe'} differs from that of the "
                    f"{plural(len(trials), 'trial')} of this name, and their figures cannot be compared; write "
                    'name = "..." for a new sweep, or undo the change'
                )
            optuna.delete_study(study_name=sweep.name, storage=locks.storage)
    raise CnnlabError(f"{sweep.file}: another process keeps changing the study {sweep.name}")


@dataclass
class _Worker:
    sweep: Sweep
    machine: Machine
    locks: Locks
    study: Study
    log: Callable[[str], None]
    _waiting: bool = field(default=False, init=False)

    def next_trial(self) -> Trial | None:
        """Take a trial: one whose worker has died, else a new one. Return None when all are finished.

        Wait while other workers train the last ones.
        """
        import optuna
        from optuna.trial import TrialState

        while True:
            with self.locks.claiming():
                trials = self.study.get_trials(deepcopy=False)
                running = [trial for trial in trials if trial.state == TrialState.RUNNING]
                for frozen in running:
                    if self.locks.take(frozen.number):
                        self._waiting = False
                        self.study.sampler = self._sampler(frozen.number)
                        return optuna.trial.Trial(self.study, frozen._trial_id)
                if len(trials) < self.sweep.trials:
                    self._waiting = False
                    self.study.sampler = self._sampler(len(trials))
                    trial = self.study.ask()
                    taken = self.locks.take(trial.number)
                    assert taken, f"trial {trial.number} is new, but locked"
                    self.params(trial)  # sampled now: a worker that takes the trial over has the same values
                    return trial
            if not running:
                return None
            if not self._waiting:
                self.log(f"waiting for other workers to finish {', '.join(f'trial {t.number}' for t in running)}")
            self._waiting = True
            time.sleep(_POLL)

    def _sampler(self, trial: int) -> Any:
        """Return the sampler of a trial: its values depend only on its number and the results reported before."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=(self.sweep.sampler_seed + 7919 * trial) % 2**32)

    def params(self, trial: Trial) -> dict[str, Any]:
        """Return the values of the searched settings, sampled unless the trial has them already."""
        values: dict[str, Any] = {}
        for name, space in self.sweep.search.items():
            if not isinstance(space, Range):
                values[name] = trial.suggest_categorical(name, space.values)
            elif isinstance(space.low, int):
                step = 1 if space.step is None else int(space.step)
                values[name] = trial.suggest_int(name, space.low, int(space.high), log=space.log, step=step)
            else:
                values[name] = trial.suggest_float(name, space.low, space.high, log=space.log, step=space.step)
        return values

    def train(self, trial: Trial) -> None:
        """Train a trial's runs, and report the result. A trial fails if its own settings make it impossible."""
        from optuna.trial import TrialState

        sweep, params = self.sweep, self.params(trial)
        earlier = self.study.get_trials(deepcopy=False)[trial.number]
        text = ", ".join(f"{key}={short(value)}" for key, value in params.items())
        again = ", taken over" * (self.machine.runs_dir / sweep.run_name(trial.number, 0)).exists()
        self.log(f"trial {trial.number} of {sweep.trials}{again}: {text}")
        results: list[Result] = []
        try:
            for seed in range(sweep.seeds):
                hook = _Hook(trial, earlier, self.locks) if seed == 0 else None
                results.append(self._run(trial.number, params, seed, hook))
                if "pruned" in trial.user_attrs:
                    break
        except CnnlabError as error:
            if not self._settings_fault(error):
                raise
            trial.set_user_attr("failed", str(error))
            self._tell(trial, TrialState.FAIL)
            self.log(f"trial {trial.number}: failed: {error}")
            return
        values = [float(result.summary["best"]) for result in results]
        trial.set_user_attr("result", {
            "values": values,
            "runs": [result.run.path.name for result in results],
            "epochs": [result.summary["epochs"] for result in results],
            "seconds": sum(result.summary["total_seconds"] for result in results),
            "recipe": results[0].run.recipe.to_dict(),
        })  # fmt: skip
        state = TrialState.PRUNED if "pruned" in trial.user_attrs else TrialState.COMPLETE
        self._tell(trial, state, fmean(values))
        after = f" after epoch {trial.user_attrs['pruned']}" if state == TrialState.PRUNED else ""
        self.log(f"trial {trial.number}: {'pruned' if after else 'finished'}{after}, {metric_label(sweep.figure)} "
                 f"{fmean(values):.4f}")  # fmt: skip

    def _tell(self, trial: Trial, state: Any, value: float | None = None) -> None:
        from optuna.trial import TrialState

        if state == TrialState.COMPLETE and not math.isfinite(value or 0.0):
            state = TrialState.FAIL
        self.locks.check()
        with self.locks.claiming():
            self.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
            self.locks.release(trial.number)

    def _settings_fault(self, error: CnnlabError) -> bool:
        """Return whether the searched values caused the error, not the machine, the images or the fixed settings.

        They did if the loss is not finite or memory ran out. For other errors, except those of the storage or of files,
        they did if the images load with the recipe without them.
        """
        if isinstance(error.__context__, NonFinite) or (error.__cause__ and out_of_memory(error.__cause__)):
            return True
        if isinstance(error, StorageLost) or isinstance(error.__cause__, OSError):
            return False
        try:
            recipe, given = self.sweep.recipe_of({})
            with self.machine.session() as session:
                session.given = given
                session.load_data(recipe)
        except CnnlabError:
            return False
        return True

    def _run(self, trial: int, params: dict[str, Any], seed: int, hook: _Hook | None) -> Result:
        """Train a run of a trial, or continue it, or return its result if it is finished."""
        recipe, given = self.sweep.recipe_of(params, seed)
        name = self.sweep.run_name(trial, seed)
        folder = self.machine.runs_dir / name
        if (folder / "run.json").exists():
            run = runs.open_run(folder)
            fixed = {**self.sweep.settings, **params, "seed": recipe.seed}
            differing = [key for key, value in fixed.items() if getattr(run.recipe, key) != value]
            if differing:
                raise CnnlabError(
                    f"{folder} is a run of another sweep: its {', '.join(differing)} differs; move it, choose another "
                    f'--runs-dir, or write name = "..." in {self.sweep.file}'
                ) from FileExistsError()  # not the settings' fault: see `_settings_fault`
            summary = run.summary()
            if summary is not None:
                return Result(run, summary)
            with self.machine.session() as session:
                session.continue_as(run)
                session.load_data(run.recipe, resumed=run)
                session.on_epoch = hook.of(run.recipe) if hook is not None else None
                with session.ctrl_c:
                    return train_run(session, run)
        _remove_started(folder)
        with self.machine.session() as session:
            session.given = given
            check_free(self.machine.runs_dir, name)
            recipe = session.load_data(recipe)
            session.on_epoch = hook.of(recipe) if hook is not None else None
            with session.ctrl_c, removed_if_empty(new_folder(self.machine.runs_dir, name, recipe)) as path:
                return train_run(session, session.create(path, recipe))


@dataclass
class _Hook:
    """A hook that reports a run's validation figure to the study after each epoch, and ends a pruned run."""

    trial: Trial
    earlier: FrozenTrial
    locks: Locks

    def of(self, recipe: Recipe) -> Callable[[dict[str, Any]], bool]:
        """Return the function that is called with each epoch's figures."""

        def on_epoch(row: dict[str, Any]) -> bool:
            self.locks.check()
            epoch = row["epoch"]
            if "pruned" in self.trial.user_attrs:  # decided by an earlier worker, which then died
                return False
            if epoch not in self.earlier.intermediate_values:  # else reported by an earlier worker, which then died
                self.trial.report(row[recipe.best_by], epoch)
            fair = recipe.epochs * _UNPRUNED < epoch < recipe.epochs
            if not fair or not self.trial.should_prune():
                return True
            self.trial.set_user_attr("pruned", epoch)
            return False

        return on_epoch


def _remove_started(folder: Path) -> None:
    """Remove the folder of a run that a killed worker had only just started. Keep it if it holds anything else."""
    if not folder.is_dir():
        return
    try:
        remove_torn(folder)
        if {path.name for path in folder.iterdir()} <= {"recipe.json"}:
            (folder / "recipe.json").unlink(missing_ok=True)
            folder.rmdir()
    except OSError as error:
        raise CnnlabError(f"cannot write into {folder}: {reason(error)}") from error


def short(value: object) -> str:
    """Return a setting's value as text, with few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
