"""A cache of all modules has modules, at every entry of its block."""

import torch
from torch import nn

from nnsight_dsl import NNsight


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x)) + x


def test_a_cache_of_all_modules_has_no_operations() -> None:
    model = NNsight(nn.Sequential(Residual()))
    for _ in range(3):
        with model.trace(torch.ones(1, 3)) as tracer:
            cache = tracer.cache()
            model[0].source.torch_relu_0.output += 1
        assert set(cache) == {"model", "model.0", "model.0.inner"}


def test_an_operation_that_is_named_is_kept() -> None:
    model = NNsight(nn.Sequential(Residual()))
    for _ in range(3):
        with model.trace(torch.ones(1, 3)) as tracer:
            cache = tracer.cache(modules=[model[0].source.torch_relu_0])
            cut = model[0].source.torch_relu_0.output.save()
        assert torch.equal(cache["model.0.source.torch_relu_0"].output, cut.detach())
