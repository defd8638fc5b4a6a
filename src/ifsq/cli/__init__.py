"""The command: a file a stage. The only room that prints and parses arguments.

``ifsq --help`` must answer at once, so nothing heavy is imported before a verb has been chosen.
"""

from ifsq.cli.main import main

__all__ = ["main"]
