"""The library's next version, as far as migrating goes: `python migrating.py FOLDER LOCK_TIMEOUT COMMAND`.

It stands in for a release that does not exist yet. The revisions are those of FOLDER, which has one more than ours, and
COMMAND is one of the command line's.
"""

import sys
from pathlib import Path

from queue_kit import cli, migrate

folder, lock_timeout, command = sys.argv[1:]
migrate.VERSION = 3
migrate.LOCK_TIMEOUT = lock_timeout
migrate.script_location = lambda: Path(folder)
cli.main([command], prog_name="queue-kit")
