"""Public address of `explain`."""

from nnsight_dsl.studies.explain import explain as explain
from nnsight_dsl.studies.explain import mermaid as mermaid
from nnsight_dsl.studies.explain import programs_in as programs_in
from nnsight_dsl.studies.explain import rows_of as rows_of
