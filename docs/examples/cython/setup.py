"""Build a Cython module that calls bncore's C functions. It links to no library."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import bncore

setup(
    ext_modules=cythonize(
        [Extension("standardize", ["standardize.pyx"], include_dirs=[bncore.get_include()])],
        language_level=3,
    )
)
