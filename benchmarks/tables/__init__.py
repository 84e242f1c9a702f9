"""Tables, claims and figures from records: everything here is derived and can be rebuilt at any time.

`evaluate` gives them as data (`tables` without the claims), `build` as files, `summary` on the terminal.
Imports no torch; pandas is not needed, scipy and matplotlib are imported where they are used.
"""

from benchmarks.tables.build import build, evaluate, tables
from benchmarks.tables.terminal import summary

__all__ = ["build", "evaluate", "summary", "tables"]
