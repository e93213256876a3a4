"""Build of the C extensions; everything else is in pyproject.toml."""

import copy
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # a PEP 517 front-end runs us from elsewhere

from ffi_build import modules


class Apart(build_ext):
    """Objects of each extension in a folder of its own: many have sources in common, some are built side by side."""

    def build_extension(self, ext: Extension) -> None:
        """Build one."""
        mine = copy.copy(self)
        mine.build_temp = os.path.join(self.build_temp, ext.name)
        super(Apart, mine).build_extension(ext)


# an editable install beside extensions that were built in the tree needs none
setup(cffi_modules=[] if "VHOSTKIT_BUILT" in os.environ else modules(), cmdclass={"build_ext": Apart})
