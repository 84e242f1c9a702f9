"""Experiments that are no row of a table: times in turn, what refiners did to samples, purification."""
