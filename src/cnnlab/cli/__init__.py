"""The command `cnnlab`: one file per group of commands, with the tables it prints."""

from cnnlab.cli.app import main

__all__ = ["main"]
