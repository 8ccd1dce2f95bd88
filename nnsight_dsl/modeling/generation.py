"""`model.generator`: the token ids of a generation, whole and step by step.

with model.generate("Hello", max_new_tokens=3) as tracer:
    steps = [].save()
    for step in tracer.iter[:]:
        steps.append(model.generator.streamer.output)   # [1, tokens], then three times [1]
    tokens = model.generator.output.save()              # [1, tokens + 3], as tracer.result
"""

from __future__ import annotations

from typing import Any

from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.driving.results import ResultPlace, StreamPlace
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.machine import Machine, current_machine
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.transforms import requests


class Streamer(StreamPlace):
    """`model.generator.streamer`: the tokens that a generation hands on, step by step."""

    _path = "generator.streamer"

    @property
    def output(self) -> Any:
        """The tokens that go into this step, on the CPU, as a copy.

        In step 0 the prompt, of shape [rows, tokens]; after that the token of each row that the
        step before has chosen, [rows]. A loop over steps has a round more for those of the last
        step.

        Raises:
            NotCalledError: the run is no generation, or its block does not name the streamer.
            NotRunningError: no model is running.
        """
        return _machine(self).request((requests.READ, self, "output"))

    @output.setter
    def output(self, value: Any) -> None:
        _machine(self).request((requests.WRITE, value, self, "output"))

    def _absence(self) -> str:
        return (
            "there are tokens in 'with model.generate(...):' only, and for a block that names "
            "model.generator.streamer.output itself: a call in it gets none"
        )


class Generation(ResultPlace):
    """`model.generator`: the place of a whole generation. Its output is the generated token ids.

    Attributes:
        streamer: the tokens step by step.
    """

    _path = "generator"

    def __init__(self) -> None:
        self.streamer = Streamer()

    @property
    def output(self) -> Any:
        """The result of `generate`: token ids of shape [rows, prompt and new tokens].

        Assign to it to replace what the run returns, for the rows of an invoke or for all.

        Raises:
            NotRunningError: no model is running.
            WriteError: the value does not fit the rows that it replaces.
        """
        return _machine(self).request((requests.READ, self, "output"))

    @output.setter
    def output(self, value: Any) -> None:
        _machine(self).request((requests.WRITE, value, self, "output"))

    def _descend(self, item: str | int) -> Place | None:
        return self.streamer if item == "streamer" else None


def _machine(place: Place) -> Machine:
    machine = current_machine()
    if machine is None:
        raise towards_user(messages.outside(name_of(place, "output")))
    return machine
