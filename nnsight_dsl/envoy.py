"""Public address of `Envoy`."""

from nnsight_dsl.envoys.envoy import Envoy as Envoy
