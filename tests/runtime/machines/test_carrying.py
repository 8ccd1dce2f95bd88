"""Model values touched outside of the block's own text: helpers, properties, callbacks."""

import functools
import itertools
import traceback

import pytest
import torch

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError, save
from tests import models
from tests.models import GPT2, LONG, assert_near, assert_same, bare, encoded, hooked

FIRST = "the cat sat"
SECOND = "a red bird"


class Failure(Exception):
    """What a helper raises."""


def read(layer):
    return layer.output


def norm(layer):
    return layer.output.norm()


def number(layer):
    return layer.output.sum().item()


def double(layer):
    layer.output = layer.output * 2


def zero(layer):
    layer.output[:] = 0


def replace_first(attention):
    attention.output[0] = attention.output[0] * -2


def read_then_fail(layer):
    hidden = layer.output
    raise Failure(tuple(hidden.shape))


def indirectly(layer):
    return twice_removed(layer)


def twice_removed(layer):
    return read(layer) * 2


def recursively(layers):
    if len(layers) == 0:
        return []
    return [layers[0].output, *recursively(layers[1:])]


def each(layers):
    for layer in layers:
        yield layer.output


def each_delegated(layers):
    yield from each(layers)


def saved(layer):
    return save(layer.output)


def with_finally(layer, log):
    try:
        return layer.output
    finally:
        log.append("finally")


def guarded(layer):
    try:
        return layer.output.no_such_attribute
    except AttributeError:
        return "missing"


def default_of(layer, reader=read):
    return reader(layer)


def keywords(*, layer, factor=1):
    return layer.output * factor


def add(total, layer):
    return total + layer.output.sum()


class Probe:
    """An object whose members read model values in every way a class can."""

    def __init__(self, layer):
        self.layer = layer

    @property
    def hidden(self):
        return self.layer.output

    @hidden.setter
    def hidden(self, value):
        self.layer.output = value

    @functools.cached_property
    def once(self):
        return self.layer.output

    def method(self, factor=1):
        return self.layer.output * factor

    @staticmethod
    def static(layer):
        return layer.output

    @classmethod
    def of_class(cls, layer):
        return cls(layer).hidden

    def __call__(self):
        return self.layer.output

    def __getitem__(self, key):
        return self.layer.output[key]

    def __len__(self):
        return self.layer.output.shape[0]

    def __add__(self, other):
        return self.layer.output + other

    def __bool__(self):
        return bool(self.layer.output.sum() > -1e9)

    def __iter__(self):
        yield from self.layer.output

    def __contains__(self, value):
        return bool((self.layer.output == value).any())

    def __enter__(self):
        return self.layer.output

    def __exit__(self, *error):
        return False

    def __getattr__(self, name):
        if name == "dynamic":
            return self.layer.output
        raise AttributeError(name)

    def __format__(self, spec):
        return str(tuple(self.layer.output.shape))

    def __lt__(self, other):
        return self.layer.output.sum() < 1e9


def doubled_after(layer):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args) * 2

        return wrapper

    return decorate


@doubled_after(None)
def decorated(layer):
    return layer.output


# functions


def test_a_helper_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        first = read(model.layers[0]).save()
        second = read(model.layers[1]).save()
    assert_same(first, outputs[0])
    assert_same(second, outputs[1])


def test_a_helper_of_a_helper_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        first = indirectly(model.layers[0]).save()
        second = model.layers[1].output.save()
    assert_same(first, outputs[0] * 2)
    assert_same(second, outputs[1])


def test_a_helper_writes(model: NNsight, module, x, outputs) -> None:
    with model.trace(x):
        double(model.layers[0])
        given = model.layers[1].input.save()
        zero(model.layers[4])
        late = model.layers[5].input.save()
    assert_same(given, outputs[0] * 2)
    assert not late.any()


def test_a_helper_replaces_an_element_of_a_tuple() -> None:
    model = models.wrapped(GPT2)
    after = {"transformer.h.1.attn": lambda output: (output[0] * -2, output[1])}
    with hooked(bare(GPT2), after):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with model.trace(LONG):
        attention = model.transformer.h[1].attn
        attention.output[0] = attention.output[0] * -2
        by_block = model.output.logits.save()
    with model.trace(LONG):
        # a tuple that is only read cannot be assigned to, but the assignment here is to a port
        model.transformer.h[1].attn.output = (
            read(model.transformer.h[1].attn)[0] * -2,
            *read(model.transformer.h[1].attn)[1:],
        )
        by_helper = model.output.logits.save()
    assert_same(by_block, expected)
    assert_same(by_helper, expected)


def test_an_element_of_a_tuple_is_not_replaced_in_a_helper_and_the_error_says_how() -> None:
    # the replacement is a rewrite of the block's own text; a helper is run as it stands
    model = models.wrapped(GPT2)
    with pytest.raises(TypeError) as caught:
        with model.trace(LONG):
            replace_first(model.transformer.h[1].attn)
    assert "replace the tuple: m.output = (x, *m.output[1:])" in caught.value.__notes__[0]


def test_a_helper_saves(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        hidden = saved(model.layers[0])
        other = read(model.layers[1])
    assert_same(hidden, outputs[0])
    assert "other" not in locals()


def test_a_helper_is_given_by_default_and_by_keyword(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        first = default_of(model.layers[0]).save()
        second = default_of(model.layers[1], reader=norm).save()
        third = keywords(layer=model.layers[2], factor=3).save()
    assert_same(first, outputs[0])
    assert_same(second, outputs[1].norm())
    assert_same(third, outputs[2] * 3)


def test_a_function_defined_before_the_block_reads(model: NNsight, x, outputs) -> None:
    factor = 3

    def local(layer):
        return layer.output * factor

    with model.trace(x):
        hidden = local(model.layers[0]).save()
    assert_same(hidden, outputs[0] * 3)


def test_a_function_defined_in_the_block_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        factor = 3

        def local(layer):
            return layer.output * factor

        hidden = local(model.layers[0]).save()
        factor = 5
        later = local(model.layers[1]).save()
    assert_same(hidden, outputs[0] * 3)
    assert_same(later, outputs[1] * 5)


def test_a_recursive_helper_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        found = recursively(model.layers[:4]).save()
    assert_same(found, outputs[:4])


def test_a_recursive_function_of_the_block_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):

        def collect(index):
            return [] if index == 4 else [model.layers[index].output, *collect(index + 1)]

        found = collect(0).save()
    assert_same(found, outputs[:4])


def test_a_lambda_reads(model: NNsight, x, outputs) -> None:
    outside = lambda layer: layer.output * 2  # noqa: E731
    with model.trace(x):
        first = outside(model.layers[0]).save()
        second = (lambda layer: layer.output * 3)(model.layers[1]).save()
        late = lambda: model.layers[2].output  # noqa: E731
        third = late().save()
    assert_same(first, outputs[0] * 2)
    assert_same(second, outputs[1] * 3)
    assert_same(third, outputs[2])


def test_a_partial_reads_and_writes(model: NNsight, x, outputs) -> None:
    reader = functools.partial(keywords, factor=4)
    with model.trace(x):
        first = reader(layer=model.layers[0]).save()
        write = functools.partial(zero, model.layers[1])
        write()
        given = model.layers[2].input.save()
    assert_same(first, outputs[0] * 4)
    assert not given.any()


def test_a_decorated_helper_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        hidden = decorated(model.layers[0]).save()
    assert_same(hidden, outputs[0] * 2)


def test_a_cached_helper_reads_once(model: NNsight, x, outputs) -> None:
    calls = []

    @functools.cache
    def cached(index):
        calls.append(index)
        return model.layers[index].output

    with model.trace(x):
        first = cached(0).save()
        again = cached(0).save()
    assert calls == [0]
    assert first is again
    assert_same(first, outputs[0])


def test_a_setattr_and_a_getattr_touch_a_port(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        port = "output"
        hidden = getattr(model.layers[0], port).save()
        setattr(model.layers[1], port, hidden * 2)
        given = model.layers[2].input.save()
    assert_same(hidden, outputs[0])
    assert_same(given, outputs[0] * 2)


# members of classes


def test_a_method_reads(model: NNsight, x, outputs) -> None:
    probes = [Probe(layer) for layer in model.layers]
    with model.trace(x):
        first = probes[0].method().save()
        bound = probes[1].method
        second = bound(factor=2).save()
        third = Probe.static(model.layers[2]).save()
        fourth = Probe.of_class(model.layers[3]).save()
        fifth = probes[4]().save()
    assert_same(first, outputs[0])
    assert_same(second, outputs[1] * 2)
    assert_same([third, fourth, fifth], outputs[2:5])


def test_a_property_reads_and_its_setter_writes(model: NNsight, x, outputs) -> None:
    probes = [Probe(layer) for layer in model.layers]
    with model.trace(x):
        first = probes[0].hidden.save()
        probes[1].hidden = first * 3
        given = model.layers[2].input.save()
        once = probes[3].once.save()
        again = probes[3].once.save()
        dynamic = probes[4].dynamic.save()
    assert_same(first, outputs[0])
    assert_same(given, outputs[0] * 3)
    assert once is again
    assert dynamic.shape == outputs[4].shape


def test_operators_of_a_class_read(model: NNsight, x, outputs) -> None:
    probe = Probe(model.layers[0])
    with model.trace(x):
        element = probe[0].save()
        length = len(probe).save()
        total = (probe + 1).save()
        truth = ("yes" if probe else "no").save()
        rows = [row.sum() for row in probe].save()
        starred = [*probe].save()
        member = (1e9 in probe).save()
        text = f"{probe}".save()
        less = (probe < 1).save()
        negated = (not probe).save()
        either = (probe and "seen").save()
        smallest = min([1, 2, 3], key=lambda number: probe[0, 0] * number).save()
    value = outputs[0]
    assert_same(element, value[0])
    assert length == 2
    assert_same(total, value + 1)
    assert truth == "yes"
    assert_same(rows, [row.sum() for row in value])
    assert_same(starred, [*value])
    assert member is False
    assert text == "(2, 4)"
    assert bool(less)
    assert negated is False
    assert either == "seen"
    assert smallest == min([1, 2, 3], key=lambda number: value[0, 0] * number)


def test_a_for_loop_over_an_object_reads(model: NNsight, x, outputs) -> None:
    probe = Probe(model.layers[0])
    with model.trace(x):
        rows = [].save()
        for row in probe:
            rows.append(row)
        later = model.layers[1].output.save()
    assert_same(rows, list(outputs[0]))
    assert_same(later, outputs[1])


def test_a_with_statement_of_an_object_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        with Probe(model.layers[0]) as hidden:
            first = (hidden * 2).save()
        second = model.layers[1].output.save()
    assert_same(first, outputs[0] * 2)
    assert_same(second, outputs[1])


# generators


def test_a_generator_reads_as_it_is_asked(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        found = [].save()
        for hidden in each(model.layers[:3]):
            found.append(hidden)
        fourth = model.layers[3].output.save()
    assert_same(found, outputs[:3])
    assert_same(fourth, outputs[3])


def test_a_generator_that_delegates_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        found = list(each_delegated(model.layers[:3])).save()
    assert_same(found, outputs[:3])


def test_next_advances_a_generator_by_one_read(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        values = each(model.layers)
        first = next(values).save()
        second = model.layers[1].output.save()
        again = next(values).save()
    assert_same([first, second, again], [outputs[0], outputs[1], outputs[1]])


def test_a_generator_expression_is_lazy(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        values = (layer.output for layer in model.layers)
        first = next(values).save()
        # the expression has not gone on, so this is in time
        second = model.layers[1].output.save()
        found = any(layer.output.numel() > 0 for layer in model.layers[2:]).save()
        third = model.layers[3].output.save()
    assert_same([first, second, third], [outputs[0], outputs[1], outputs[3]])
    assert found is True


def test_zip_and_enumerate_of_generators_read(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        found = {}.save()
        for index, hidden in enumerate(each(model.layers[:2])):
            found[index] = hidden
        pairs = list(zip("ab", each(model.layers[2:]), strict=False)).save()
    assert_same(found, {0: outputs[0], 1: outputs[1]})
    assert [name for name, _ in pairs] == ["a", "b"]
    assert_same([hidden for _, hidden in pairs], outputs[2:4])


# callbacks of builtins and of the standard library


def test_map_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        found = list(map(norm, model.layers)).save()
    assert_same(found, [value.norm() for value in outputs])


def test_map_with_a_lambda_is_lazy(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        values = map(lambda layer: layer.output, model.layers)  # noqa: C417
        first = next(values).save()
        second = model.layers[1].output.save()
    assert_same([first, second], outputs[:2])


def test_filter_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        chosen = [
            layer._path for layer in filter(lambda layer: number(layer) > 0, model.layers)
        ].save()
    assert chosen == [f"layers.{i}" for i, value in enumerate(outputs) if value.sum() > 0]


def test_sorted_with_a_key_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        ordered = [layer._path for layer in sorted(model.layers, key=number)].save()
    expected = sorted(range(len(outputs)), key=lambda i: outputs[i].sum().item())
    assert ordered == [f"layers.{i}" for i in expected]


def test_max_and_min_with_a_key_read(model: NNsight, x, outputs) -> None:
    sums = [value.sum().item() for value in outputs]
    with model.trace(x):
        largest = max(list(model.layers)[:3], key=number)._path.save()
        smallest = min(list(model.layers)[3:], key=lambda layer: layer.output.sum())._path.save()
    assert largest == f"layers.{sums.index(max(sums[:3]))}"
    assert smallest == f"layers.{sums.index(min(sums[3:]))}"


def test_reduce_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        total = functools.reduce(add, model.layers, 0).save()
    expected = 0
    for value in outputs:
        expected = expected + value.sum()
    assert_same(total, expected)


def test_a_sort_of_a_list_in_place_reads(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        order = list(range(6)).save()
        order.sort(key=lambda index: number(model.layers[index]))
    assert order == sorted(range(6), key=lambda index: outputs[index].sum().item())


def test_itertools_read(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        taken = list(itertools.islice(map(read, model.layers), 3)).save()
        fourth = model.layers[3].output.save()
    assert_same(taken, outputs[:3])
    assert_same(fourth, outputs[3])


def test_a_callback_of_pytree_reads(model: NNsight, x, outputs) -> None:
    tree = {"first": model.layers[0], "rest": [model.layers[1], model.layers[2]]}
    with model.trace(x):
        found = torch.utils._pytree.tree_map(read, tree).save()
    assert_same(found["first"], outputs[0])
    assert_same(found["rest"], outputs[1:3])


def test_map_writes(model: NNsight, module, x) -> None:
    with hooked(module, {f"layers.{i}": lambda output: output * 2 for i in range(6)}):
        expected = module(x)
    with model.trace(x):
        done = list(map(double, model.layers)).save()
        result = model.output.save()
    assert done == [None] * 6
    assert_same(result, expected)


def test_re_sub_with_a_callback_reads(model: NNsight, x, outputs) -> None:
    import re

    with model.trace(x):
        text = re.sub(
            r"\d", lambda found: str(read(model.layers[int(found[0])]).shape[0]), "0 and 1"
        ).save()
        later = model.layers[2].output.save()
    assert text == "2 and 2"
    assert_same(later, outputs[2])


# exceptions


def test_what_a_helper_raises_reaches_the_caller(model: NNsight, x) -> None:
    with pytest.raises(Failure) as caught:
        with model.trace(x):
            read_then_fail(model.layers[1])
    assert caught.value.args == ((2, 4),)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames][-1] == "read_then_fail"
    assert {frame.filename for frame in frames} == {__file__}


def test_what_a_callback_raises_reaches_the_caller(model: NNsight, x) -> None:
    with pytest.raises(Failure) as caught:
        with model.trace(x):
            list(map(read_then_fail, model.layers))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames][-1] == "read_then_fail"
    assert {frame.filename for frame in frames} == {__file__}


def test_what_a_helper_raises_is_caught_in_the_block(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        try:
            read_then_fail(model.layers[0])
        except Failure as failure:
            shape = failure.args[0].save()
        second = read(model.layers[1]).save()
    assert shape == (2, 4)
    assert_same(second, outputs[1])


def test_a_helper_catches_what_it_raises(model: NNsight, x, outputs) -> None:
    with model.trace(x):
        found = guarded(model.layers[0]).save()
        second = read(model.layers[1]).save()
    assert found == "missing"
    assert_same(second, outputs[1])


def test_a_helper_that_asks_too_late_is_told_so(model: NNsight, x) -> None:
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(x):
            later = read(model.layers[3])
            earlier = read(model.layers[1])
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "read"


def test_a_helper_catches_that_it_asks_too_late(model: NNsight, x, outputs) -> None:
    def either(layer, other):
        try:
            return layer.output
        except OutOfOrderError:
            return other.output

    with model.trace(x):
        later = read(model.layers[2])
        found = either(model.layers[0], model.layers[3]).save()
    assert_same(found, outputs[3])


def test_finally_of_a_helper_runs_once(model: NNsight, x, outputs) -> None:
    log = []
    with model.trace(x):
        hidden = with_finally(model.layers[0], log).save()
        seen = list(log).save()
    assert_same(hidden, outputs[0])
    assert seen == log == ["finally"]


def test_finally_of_a_helper_runs_when_the_run_ends_first(model: NNsight, x) -> None:
    log = []

    def waits(layer):
        try:
            layer.output
            raise Failure
        finally:
            log.append("finally")

    with pytest.raises(Failure):
        with model.trace(x):
            waits(model.layers[0])
    assert log == ["finally"]


def test_finally_of_a_waiting_helper_runs_when_the_model_raises(model: NNsight, module, x) -> None:
    log = []

    def explode(_output):
        raise Failure

    with hooked(module, {"layers.1": explode}):
        with pytest.raises(Failure):
            with model.trace(x):
                with_finally(model.layers[4], log)
    assert log == ["finally"]


def test_stop_iteration_of_a_helper_keeps_its_type(model: NNsight, x) -> None:
    def stops(layer):
        layer.output
        raise StopIteration("mine")

    with pytest.raises(StopIteration, match="mine"):
        with model.trace(x):
            stops(model.layers[0])


def test_stop_iteration_of_a_block_keeps_its_type(model: NNsight, x) -> None:
    with pytest.raises(StopIteration, match="mine"):
        with model.trace(x):
            hidden = model.layers[0].output
            raise StopIteration("mine")


def test_next_of_an_empty_generator_raises_stop_iteration(model: NNsight, x) -> None:
    with model.trace(x):
        hidden = model.layers[0].output
        try:
            next(each([]))
        except StopIteration:
            outcome = "empty".save()
    assert outcome == "empty"


# invokes


def test_helpers_of_several_invokes_see_their_own_rows() -> None:
    model = models.wrapped(GPT2)
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = list(map(read, model.transformer.h)).save()
        with tracer.invoke(SECOND):
            second = recursively(model.transformer.h).save()
        with tracer.invoke():
            everything = list(each(model.transformer.h)).save()
    for index in range(3):
        path = f"transformer.h.{index}"
        assert_near(first[index], models.output_of(GPT2, FIRST, path))
        assert_near(second[index], models.output_of(GPT2, SECOND, path))
        assert_near(everything[index], torch.cat([first[index], second[index]]))


def test_a_helper_of_one_invoke_edits_its_own_rows() -> None:
    model = models.wrapped(GPT2)
    with hooked(bare(GPT2), {"transformer.h.1": lambda output: output * 0}):
        expected = bare(GPT2)(**encoded(SECOND)).logits
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            zero(model.transformer.h[1])
            second = model.output.logits.save()
    assert_near(first, models.logits_of(GPT2, FIRST))
    assert_near(second, expected)


def test_properties_and_sorted_work_side_by_side_in_two_invokes() -> None:
    model = models.wrapped(GPT2)
    sums = {
        prompt: [
            models.output_of(GPT2, prompt, f"transformer.h.{i}").sum().item() for i in range(3)
        ]
        for prompt in (FIRST, SECOND)
    }
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            order = [layer._path for layer in sorted(model.transformer.h, key=number)].save()
        with tracer.invoke(SECOND):
            found = [Probe(block).hidden.sum().item() for block in model.transformer.h].save()
    expected = sorted(range(3), key=lambda i: sums[FIRST][i])
    assert order == [f"transformer.h.{i}" for i in expected]
    assert found == pytest.approx(sums[SECOND], rel=1e-3, abs=1e-3)


def test_a_value_of_a_helper_crosses_invokes() -> None:
    model = models.wrapped(GPT2)
    clean = models.output_of(GPT2, FIRST, "transformer.h.1")
    with hooked(bare(GPT2), {"transformer.h.1": lambda _output: clean}):
        expected = bare(GPT2)(**encoded(SECOND)).logits

    def patch(layer, value):
        layer.output = value

    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = read(model.transformer.h[1])
        with tracer.invoke(SECOND):
            patch(model.transformer.h[1], hidden)
            logits = model.output.logits.save()
    assert_near(logits, expected)


def test_what_a_helper_of_an_invoke_raises_ends_the_run() -> None:
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    calls = []
    with hooked(model._module, {"transformer.h.2": lambda output: calls.append(1)}):
        with pytest.raises(Failure):
            with model.trace() as tracer:
                with tracer.invoke(FIRST):
                    logits = model.output.logits.save()
                with tracer.invoke(SECOND):
                    read_then_fail(model.transformer.h[0])
    assert calls == []


def test_a_helper_opens_invokes() -> None:
    model = models.wrapped(GPT2)

    def logits_of(tracer, prompt, found):
        with tracer.invoke(prompt):
            found.append(model.output.logits)

    found = []
    with model.trace() as tracer:
        for prompt in (FIRST, SECOND):
            logits_of(tracer, prompt, found)
    assert len(found) == 2
    assert_near(found[0], models.logits_of(GPT2, FIRST))
    assert_near(found[1], models.logits_of(GPT2, SECOND))


# generation


def _steps(path, prompt=LONG):
    with models.recorded(bare(GPT2), [path]) as seen:
        bare(GPT2).generate(**encoded(prompt), max_new_tokens=3, do_sample=False)
    return seen[path]


def test_a_helper_reads_in_each_step() -> None:
    model = models.wrapped(GPT2)
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        found = [].save()
        for _ in tracer.iter[:]:
            found.append(read(model.transformer.h[1]))
    assert_same(found, _steps("transformer.h.1"))


def test_callbacks_read_in_each_step() -> None:
    model = models.wrapped(GPT2)
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        found = [].save()
        with tracer.iter[:]:
            found.append(list(map(norm, model.transformer.h)))
    expected = [_steps(f"transformer.h.{i}") for i in range(3)]
    assert_same(found, [[layer[step].norm() for layer in expected] for step in range(3)])


def test_a_helper_that_loops_over_steps_reads_each() -> None:
    model = models.wrapped(GPT2)

    def collect(tracer, layer):
        return [layer.output for _ in tracer.iter[:]]

    def collect_in_a_loop(tracer, layer, found):
        for step in tracer.iter[1:]:
            found.append((step, layer.output))

    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        found = collect(tracer, model.transformer.h[1]).save()
        result = tracer.result.save()
    pairs = []
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        collect_in_a_loop(tracer, model.transformer.h[1], pairs)
    expected = _steps("transformer.h.1")
    assert_same(found, expected)
    assert [step for step, _ in pairs] == [1, 2]
    assert_same([hidden for _, hidden in pairs], expected[1:])
    assert_same(result, bare(GPT2).generate(**encoded(LONG), max_new_tokens=3, do_sample=False))


def test_a_helper_edits_in_each_step() -> None:
    model = models.wrapped(GPT2)
    with hooked(bare(GPT2), {"transformer.h.1": lambda output: output * 0}):
        expected = bare(GPT2).generate(**encoded(LONG), max_new_tokens=3, do_sample=False)
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            zero(model.transformer.h[1])
        result = tracer.result.save()
    assert_same(result, expected)


def test_a_comprehension_over_steps_reads_each() -> None:
    model = models.wrapped(GPT2)
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        found = [model.transformer.h[1].output for _ in tracer.iter[:]].save()
        result = tracer.result.save()
    assert_same(found, _steps("transformer.h.1"))


def test_what_a_helper_raises_in_a_later_step_reaches_the_caller() -> None:
    model = models.wrapped(GPT2)

    def fail_in(step, layer):
        hidden = layer.output
        if step == 1:
            raise Failure(tuple(hidden.shape))

    with pytest.raises(Failure) as caught:
        with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
            for step in tracer.iter[:]:
                fail_in(step, model.transformer.h[1])
    assert caught.value.args == ((1, 1, 16),)


# a second run of a block costs no more than a look-up, and means the same


def test_a_block_with_helpers_means_the_same_each_time(model: NNsight, x, outputs) -> None:
    def run(reader):
        with model.trace(x):
            hidden = reader(model.layers[0]).save()
            later = model.layers[1].output.save()
        return hidden, later

    for reader, expected in (
        (read, outputs[0]),
        (lambda layer: torch.ones(1), torch.ones(1)),
        (norm, outputs[0].norm()),
        (Probe.static, outputs[0]),
        (read, outputs[0]),
    ):
        hidden, later = run(reader)
        assert_same(hidden, expected)
        assert_same(later, outputs[1])
