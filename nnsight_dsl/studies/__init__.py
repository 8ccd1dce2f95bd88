"""Studies: scans, plans, sweeps and reports, built on traces."""
