"""Public address of `intervene`, by which pickles name it."""

from nnsight_dsl.tracing.intervene import Intervention as Intervention
from nnsight_dsl.tracing.intervene import _empty as _empty
from nnsight_dsl.tracing.intervene import intervene as intervene
