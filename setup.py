"""Build of the C extensions; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))  # a PEP 517 front-end runs us from elsewhere

from ffi_build import modules

setup(cffi_modules=modules())
