"""The experiments: what a row of a table is, and how one run is executed."""
