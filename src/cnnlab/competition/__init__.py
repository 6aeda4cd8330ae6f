"""An image competition, from its archives to a submission: one function a step, each of which can be repeated.

A competition has a work folder, RUNS/NAME, where the steps leave what they make:

    competition.json     which files it is about, and where their store is
    figure-1.8.png       sample images
    train/               the run (or the runs of several seeds) with images held out
    retrain/             the same on every labelled image
    report.json          training and validation figures, confusion matrix
    submission.csv       what to hand in
    uploads.jsonl        what was handed in

A step that is finished is not done again; one that was interrupted goes on where it stopped, a submission with the runs
whose answers are not yet there (`answers-*.npy` in each run's folder).
"""

from __future__ import annotations

from pathlib import Path

from cnnlab.competition import client
from cnnlab.competition.answers import Submitted, check_submittable, submit
from cnnlab.competition.layout import Layout
from cnnlab.competition.submission import Score, Written, score
from cnnlab.competition.trainings import Trained, retrain, train
from cnnlab.competition.work import NAME, Competition, Overview, open_competition, prepare, show
from cnnlab.data import data_folder
from cnnlab.io.errors import expand
from cnnlab.training.display import make_display

__all__ = [
    "Competition",
    "Layout",
    "Overview",
    "Score",
    "Submitted",
    "Trained",
    "Written",
    "check_submittable",
    "get",
    "open_competition",
    "prepare",
    "retrain",
    "score",
    "show",
    "submit",
    "train",
]


def get(
    competition: str = NAME,
    folder: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    progress: str = "auto",
) -> list[Path]:
    """Download the competition's files with the official client, unless they are there.

    folder: unsaid, that of the datasets. Raises: CnnlabError, which says what to download by hand, and where to put
    it, where the client or its token is missing.
    """
    display = make_display(progress)
    try:
        return client.get(
            competition, expand(folder) if folder else data_folder(data_dir) / competition, report=display.read
        )
    finally:
        display.end()
