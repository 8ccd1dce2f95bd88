"""Minimal cases of what went wrong once where taps are put on a model."""

import gc
import warnings
import weakref

import torch
from torch import nn
from transformers import CompileConfig

from nnsight_dsl import LanguageModel, NNsight
from tests.models import hooked, new_llama, token_ids, tokenizer

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def test_a_call_patched_after_the_first_run_is_in_force():
    class Layer(nn.Linear):
        pass

    net = nn.Sequential(Layer(4, 4), nn.Linear(4, 4))
    model = NNsight(net)

    def run():
        with model.trace(X) as tracer:
            hidden = model[0].output
            result = tracer.result.save()
        return result

    plain = run()
    Layer.__call__ = lambda self, x: nn.Module.__call__(self, x) * 2
    assert run().equal(net(X))
    assert not run().equal(plain)
    del Layer.__call__
    assert run().equal(plain)


def test_a_call_patched_before_the_first_run_is_given_back():
    class Layer(nn.Linear):
        pass

    net = nn.Sequential(Layer(4, 4), nn.Linear(4, 4))
    model = NNsight(net)
    plain = net(X)
    Layer.__call__ = lambda self, x: nn.Module.__call__(self, x) * 2
    with model.trace(X) as tracer:
        hidden = model[0].output
        result = tracer.result.save()
    assert not result.equal(plain)
    del Layer.__call__
    with model.trace(X) as tracer:
        hidden = model[0].output
        result = tracer.result.save()
    assert result.equal(plain)


def test_calls_that_go_around_the_class_are_visits():
    class Net(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.part = nn.Linear(4, 4)
            self.__dict__["call"] = call(self.part)

        def forward(self, x):
            return self.call(x) + 1

    for call in (
        lambda part: part.__call__,
        lambda part: lambda x: part._call_impl(x),
        lambda part: lambda x: nn.Module.__call__(part, x),
        lambda part: lambda x: super(nn.Linear, part).__call__(x),
    ):
        net = Net(call)
        model = NNsight(net)
        with model.trace(X):
            seen = model.part.output.save()
            model.part.output = model.part.output * 2
            result = model.output.save()
        assert seen.equal(net.part(X))
        assert result.equal(net.part(X) * 2 + 1)


def test_a_class_is_freed_with_what_was_made_for_its_taps():
    def run():
        class Layer(nn.Linear):
            pass

        model = NNsight(nn.Sequential(Layer(4, 4)))
        for _ in range(2):
            with model.trace(X):
                hidden = model[0].output.save()
        return weakref.ref(Layer)

    layer = run()
    # the module first, then its class, which only a collector frees
    gc.collect()
    gc.collect()
    assert layer() is None


def test_an_empty_trace_leaves_torchs_fast_path_on():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, pad = torch.randn(2, 4, 8), torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]]).bool()
    model = NNsight(net)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = net(x, src_key_padding_mask=pad)
        with model.trace(x, src_key_padding_mask=pad):
            output = model.output.save()
    assert output.equal(plain)


def test_a_generation_that_is_compiled_after_a_plain_one_is_seen():
    net = new_llama()
    model = LanguageModel(net, tokenizer=tokenizer())
    ids = token_ids("the cat sat")
    compiling = CompileConfig(fullgraph=False, backend="eager", mode=None)
    compiling._compile_all_devices = True
    options = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    compiled = dict(cache_implementation="static", compile_config=compiling)
    mask = torch.ones_like(ids)
    with hooked(net, {"model.layers.1": lambda output: output + 0.5}):
        expected = net.generate(ids, attention_mask=mask, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = net.generate(ids, attention_mask=mask, **options, **compiled)
        steps = []
        with model.generate(ids, **options, **compiled) as tracer:
            for step in tracer.iter[:4]:
                model.model.layers[1].output = model.model.layers[1].output + 0.5
                steps.append(step)
            output = tracer.result.save()
        with model.generate(ids, **options, **compiled) as tracer:
            same = tracer.result.save()
    torch._dynamo.reset()
    assert steps == [0, 1, 2, 3]
    assert output.equal(expected)
    assert same.equal(plain)


def test_a_value_read_inside_a_forward_is_freed_without_the_collector():
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    gc.disable()
    try:
        references = []
        for _ in range(3):
            with model.trace(X):
                hidden = model[1].source.F_gelu_0.output.save()
            references.append(weakref.ref(hidden))
            del hidden
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_an_operation_is_skipped_with_a_value_that_was_read_in_its_forward():
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    model = NNsight(net)
    for _ in range(2):
        with model.trace(X):
            hidden = model[0].output
            model[1].source.F_gelu_0.skip(hidden * 2)
            seen = model[1].source.F_gelu_0.output.save()
            result = model.output.save()
        assert result.equal(net[0](X) * 2)
        assert seen.equal(result)


def test_the_source_of_an_object_with_a_call():
    class Processor:
        def __call__(self, layer, x):
            return torch.tanh(layer.fc(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.processor = nn.Linear(4, 4), Processor()

        def forward(self, x):
            return self.processor(self, x)

    net = nn.Sequential(Layer())
    model = NNsight(net)
    with model.trace(X):
        seen = model[0].source.self_processor_0.source.torch_tanh_0.input.save()
    assert seen.equal(net[0].fc(X))


def test_an_output_behind_a_full_backward_hook_is_edited_in_place():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    seen = []
    net[0].register_full_backward_hook(lambda module, into, out: seen.append(out[0]))
    model = NNsight(net)
    with model.trace(X.clone().requires_grad_()):
        model[0].output[:, 0] = 0
        result = model.output.save()
    expected = net[0](X).clone()
    expected[:, 0] = 0
    assert result.equal(net[1](expected))
    result.sum().backward()
    assert len(seen) == 1
