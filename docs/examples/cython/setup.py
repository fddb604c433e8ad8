"""Build a Cython module that calls bncore's C functions; it links to nothing."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import bncore

setup(
    ext_modules=cythonize(
        [Extension("standardize", ["standardize.pyx"], include_dirs=[bncore.get_include()])],
        language_level=3,
    )
)
