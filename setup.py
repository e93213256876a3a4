"""Build of the C extensions; everything else is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))  # a PEP 517 front-end runs us from elsewhere

from ffi_build import modules

# an editable install beside extensions that were built in the tree needs none
setup(cffi_modules=[] if "VHOSTKIT_BUILT" in os.environ else modules())
