"""From a recipe to a run's folder: entry points in train.py, the update in step.py."""
