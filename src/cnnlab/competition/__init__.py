"""An image competition, from its archives to a submission: one function per step, each of which can be repeated.

A competition has a work folder, RUNS/NAME:

    competition.json     the competition's files and their store
    figure-1.8.png       sample images
    train/               the run (or the runs of several seeds) with a validation split
    retrain/             the same on all labelled images
    report.json          evaluation on both splits, confusion matrices
    submission.csv       the file to submit
    uploads.jsonl        what was submitted

A finished step is not repeated, and an interrupted one continues where it stopped. The probabilities of the test images
are saved as `answers-*.npy` in each run's folder.
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
from cnnlab.training.display import reporting

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
    """Download the competition's files with the official client, unless they are already there.

    folder: where they go. Default: `competition` in the folder of the datasets. Raise CnnlabError; if the client or its
    token is missing, it lists the files to download by hand.
    """
    with reporting(progress) as report:
        return client.get(competition, expand(folder) if folder else data_folder(data_dir) / competition, report=report)
