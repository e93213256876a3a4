"""``make bench``, ``python -m bench``."""

from bench.suite import main

main()
