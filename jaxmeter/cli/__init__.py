"""The command `jaxmeter`."""

from jaxmeter.cli.commands import main

__all__ = ["main"]
