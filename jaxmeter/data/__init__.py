"""Records, their splits, and the files they come from."""

from jaxmeter.data.readers import READERS

__all__ = ["READERS"]
