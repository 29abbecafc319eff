"""The `deft` command as it is installed: Ctrl-C ends it while its modules are still imported."""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Import the command line and run it; a signal ends the import at once and without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler prints a traceback
    from deft.platform.cli import main as run_command

    run_command()
