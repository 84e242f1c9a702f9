"""Data sets: a registered ``load(name, *, seed, **settings) -> Data``; one file a family."""
