"""The command `cnnlab`: one file for each group of commands, with the tables it prints."""

from cnnlab.cli.app import main

__all__ = ["main"]
