"""The chapter itself: its experiments, figures, classical baseline and lessons."""
