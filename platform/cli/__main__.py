"""`python -m deft.platform.cli`: how a submitted job starts a command, see `commands/submit.py`."""

from deft.platform.cli import main

main()
