"""Public address of `sweep`."""

from nnsight_dsl.studies.sweep import Sweep as Sweep
from nnsight_dsl.studies.sweep import sweep as sweep
