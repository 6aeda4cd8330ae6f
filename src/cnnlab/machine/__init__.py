"""This machine: benchmarks and checks of the installation."""
