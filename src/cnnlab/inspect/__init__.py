"""Inspect networks: output shapes, parameters and multiply-adds of each layer."""
