"""What every load generator shares: results that are kept, compared and plotted.

A load generator (`vhost.loads` entry point) measures; it hands its figures here as a `Run`.
"""

from vhost.bench.results import ResultError, Run, append_csv, cell_of, load, machine, save_json

__all__ = ["ResultError", "Run", "append_csv", "cell_of", "load", "machine", "save_json"]
