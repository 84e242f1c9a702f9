"""From a planned bundle to its records: processes, locks, devices, checkpoints, source hashes."""
