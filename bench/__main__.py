"""``make bench``, ``python -m bench``."""

from bench.blk_peers import main

main()
