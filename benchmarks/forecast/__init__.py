"""What a suite will take before it starts, and what is missing on this machine. Imports no torch."""
