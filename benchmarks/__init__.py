"""What this package costs, beside hooks by hand and other libraries: `python -m benchmarks`."""
