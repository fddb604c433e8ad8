"""How to install what an extra needs, for the messages that say that it is missing."""

from __future__ import annotations


def pip_install(extra: str) -> str:
    """Return the command that installs an extra of the bncore that runs.

    pip takes the bncore that is installed and looks for no other, so ``bncore[extra]`` works
    whether or not a package index has bncore.  A checkout that is not installed needs its path.
    """
    from importlib.metadata import distributions

    # What pip installs has this file; what setuptools leaves beside a checkout has another one.
    installed = any(found.read_text("METADATA") for found in distributions(name="bncore"))
    if installed:
        return f"`pip install 'bncore[{extra}]'`"
    return f"`pip install '.[{extra}]'` in its checkout"


def missing(adapter: str, framework: str, packages: set[str], error: ImportError) -> ImportError:
    """Return the error of an adapter whose framework is not installed.

    If the framework is installed, but broken, it is the error of the framework.
    """
    if error.name not in packages:
        return error
    return ModuleNotFoundError(
        f"bncore.{adapter}: expected {framework}, got none: {pip_install(adapter)} installs it",
        name=error.name,
    )
