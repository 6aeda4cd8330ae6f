"""Training, from a recipe to a run's folder. Entry points are in train.py, the update is in step.py."""
