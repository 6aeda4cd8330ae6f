"""The results of a sweep so far: its trials, the best first, and the importance of each setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import read_json, read_limited, write_atomic
from cnnlab.recipe import Recipe, recipe_json
from cnnlab.sweep.definition import Sweep
from cnnlab.sweep.storage import explained_storage_errors, reading

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FORMAT = "cnnlab sweep 1"
"""The format of the page's data."""
_LEAST = 4  # finished trials needed for importances


@dataclass(frozen=True)
class SweepTrial:
    """A trial. state: finished, pruned, failed or running. value: the mean of `values`, one for each seed.

    For a pruned or running trial, `value` is the last one reported. failed: the error that ended it, or "". recipe,
    epochs: of the first seed's run.
    """

    number: int
    state: str
    value: float | None
    values: list[float]
    params: dict[str, Any]
    runs: list[str]
    epochs: int | None
    seconds: float | None
    failed: str
    recipe: dict[str, Any] | None

    @property
    def std(self) -> float | None:
        """The standard deviation over the seeds; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class SweepResult:
    """The state of a sweep. trials: the best first, then pruned, failed and running ones.

    importance: each searched setting's share of the figure's variance; empty for few trials.
    """

    sweep: Sweep
    trials: list[SweepTrial]
    importance: dict[str, float]

    @property
    def best(self) -> SweepTrial | None:
        """The best finished trial."""
        return next((trial for trial in self.trials if trial.state == "finished"), None)

    def count(self, state: str) -> int:
        """Return the number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def done(self) -> bool:
        """Whether all trials are finished, pruned or failed."""
        return len(self.trials) >= self.sweep.trials and not self.count("running")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        sweep = self.sweep
        trials = [{**vars(trial), "std": trial.std} for trial in self.trials]
        for row in trials:
            del row["recipe"]
        return {
            "name": sweep.name,
            "figure": sweep.figure,
            "minimize": sweep.minimize,
            "trials": sweep.trials,
            "seeds": sweep.seeds,
            **{state: self.count(state) for state in ("finished", "pruned", "failed", "running")},
            "best": self.best.number if self.best else None,
            "recipe": self.best.recipe if self.best else None,
            "importance": self.importance,
            "rows": trials,
        }

    def save(self) -> list[Path]:
        """Write the page, and the best trial's recipe if there is one. Replace earlier ones. Return the files.

        Raise CnnlabError if that fails; see also `check_files`.
        """
        from cnnlab.sweep.page import sweep_page

        check_files(self.sweep)
        files = {self.sweep.page_file: sweep_page(self)}
        if self.best is not None and self.best.recipe is not None:
            try:
                files[self.sweep.recipe_file] = recipe_json(Recipe.from_dict(self.best.recipe))
            except (CnnlabError, TypeError) as error:
                raise CnnlabError(
                    f"{self.sweep.file}: trial {self.best.number} was trained by another version of cnnlab: {error}; "
                    'write name = "..." for a new sweep'
                ) from error
        for path, text in files.items():
            try:
                write_atomic(path, text)
            except OSError as error:
                raise CnnlabError(f"cannot write {path}: {reason(error)}") from error
        return list(files)


def check_files(sweep: Sweep) -> None:
    """Raise CnnlabError if the page or the recipe would replace a file that no sweep wrote."""
    for path, is_ours in ((sweep.page_file, _is_page), (sweep.recipe_file, _is_recipe)):
        if path.exists() and not is_ours(path):
            raise CnnlabError(f"{path} exists, and the sweep would replace it; move it, or rename {sweep.file.name}")


def _is_page(path: Path) -> bool:
    try:
        return f'"format":"{FORMAT}"'.encode() in read_limited(path, 1 << 28)
    except CnnlabError:
        return False


def _is_recipe(path: Path) -> bool:
    try:
        return {"model", "learning_rate"} <= read_json(path).keys()
    except CnnlabError:
        return False


def sweep_result(sweep: Sweep) -> SweepResult:
    """Return the state of a sweep, even while workers train. Nothing is written. Raise CnnlabError."""
    import optuna

    with explained_storage_errors(sweep.storage), reading(sweep.storage) as storage:
        if storage is None or sweep.name not in optuna.get_all_study_names(storage):
            return SweepResult(sweep, [], {})
        study = optuna.load_study(study_name=sweep.name, storage=storage)
        trials = [_trial(trial) for trial in study.get_trials(deepcopy=False)]
        order = ["finished", "pruned", "failed", "running"]
        sign = 1 if sweep.minimize else -1
        trials.sort(key=lambda t: (order.index(t.state), sign * (t.value if t.value is not None else 0.0), t.number))
        return SweepResult(sweep, trials, _importance(study, sweep))


def _trial(trial: FrozenTrial) -> SweepTrial:
    from optuna.trial import TrialState

    states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    result = trial.user_attrs.get("result", {})
    epochs = result.get("epochs", [])
    reported = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None
    return SweepTrial(
        number=trial.number,
        state=states.get(trial.state, "running"),
        value=trial.value if trial.state == TrialState.COMPLETE else reported,
        values=list(result.get("values", [])),
        params=dict(trial.params),
        runs=list(result.get("runs", [])),
        epochs=epochs[0] if epochs else (max(trial.intermediate_values) if trial.intermediate_values else None),
        seconds=result.get("seconds"),
        failed=str(trial.user_attrs.get("failed", "")),
        recipe=result.get("recipe"),
    )


def _importance(study: Study, sweep: Sweep) -> dict[str, float]:
    """Return the settings' fANOVA importances, from scikit-learn's random forest, the largest first.

    They sum to 1, or all are 0. Return {} for too few trials, or if all have the same figure.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [name for name in sweep.search if len({trial.params[name] for trial in finished}) > 1]
    if len(finished) < _LEAST or not varied or len({trial.value for trial in finished}) < 2:
        return {}
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied)
    found |= {name: 0.0 for name in sweep.search if name not in varied}
    return dict(sorted(((name, float(share)) for name, share in found.items()), key=lambda pair: -pair[1]))
