"""Optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Imports an optional module, or says how to install it.

    Args:
        module: the module to import.
        package: the name of the package that holds it.
        purpose: what needs it, as the start of a sentence.

    Returns:
        The module.

    Raises:
        ImportError: if it cannot be imported; the message has the command that installs it.

    Example:
        >>> require("math", "python", "Arithmetic").sqrt(4.0)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {package} ({error}); run: pip install 'ifjax[data]'"
        ) from error
