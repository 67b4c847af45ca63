"""Imported first in a process, makes it one without TensorFlow."""

import importlib.machinery
import sys


class Finder(importlib.machinery.PathFinder):
    """As where TensorFlow is not installed.

    torch asks `find_spec`, and goes on if it answers `None`.
    """

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] != "tensorflow":
            return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
