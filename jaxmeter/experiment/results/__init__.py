"""Reading a store: the tidy table of a study, comparisons, figures, pages, event files.

Everything here reads finished runs, and writes only below `STORE/studies/<study>/` or where it is
told to.
"""

from jaxmeter.experiment.results.finished import DamagedRun
from jaxmeter.experiment.results.study import (
    index,
    plot,
    table,
    tidy,
    write,
    write_events,
    write_table,
)
from jaxmeter.experiment.results.tables import Comparison
from jaxmeter.experiment.store.store import StoreWarning

__all__ = [
    "Comparison",
    "DamagedRun",
    "StoreWarning",
    "index",
    "plot",
    "table",
    "tidy",
    "write",
    "write_events",
    "write_table",
]
