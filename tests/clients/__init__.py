"""Programs and suites that others wrote for nnsight, run as they are: `make clients`."""
