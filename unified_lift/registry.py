"""What can be added by dropping in one file: methods, datasets and protocols are found, not listed."""

import importlib
import pkgutil
import sys
from typing import Any


def members(package: str, attribute: str) -> list[Any]:
    """Return `attribute`, such as `READER`, of every module and sub-package that has it, sorted by their names."""
    names = sorted(info.name for info in pkgutil.iter_modules(sys.modules[package].__path__))
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    return [getattr(module, attribute) for module in modules if hasattr(module, attribute)]
