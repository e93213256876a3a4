"""Build of the C extensions; everything else is in pyproject.toml."""

from setuptools import setup

from ffi_build import modules

setup(cffi_modules=modules())
