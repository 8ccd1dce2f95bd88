"""Collect these tests where there is a GPU, and only there: `make test-gpu` fails without one."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
