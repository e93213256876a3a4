"""``python -m guestlib demo|test``: make what guests need ahead of time."""

import sys

from guestlib.assets import prepare

raise SystemExit(prepare(sys.argv[1] if len(sys.argv) > 1 else "test"))
