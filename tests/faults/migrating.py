"""The library's next version, as far as migrating goes: `python migrating.py FOLDER LOCK_TIMEOUT COMMAND`.

It stands in for a release that does not exist yet. The revisions are those of FOLDER, which has one more than ours, and
COMMAND is one of the command line's.
"""

import sys
from pathlib import Path

from queue_kit import _revisions, cli, migrate

folder, lock_timeout, command = sys.argv[1:]
migrate.VERSION = 3
_revisions.LOCK_TIMEOUT = lock_timeout
_revisions.script_location = lambda: Path(folder)
cli.main([command], prog_name="queue-kit")
