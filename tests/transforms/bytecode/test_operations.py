"""What the operations of a function are, and what they are called, on every Python version."""

import textwrap
from types import FunctionType
from typing import Any

import pytest

from nnsight_dsl.transforms.bytecode.operations import operations_of


def made(body: str, arguments: str = "self, x, y=1, *args, **kwargs") -> FunctionType:
    names: dict[str, Any] = {}
    text = f"def forward({arguments}):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    exec(compile(text, "<forward>", "exec"), names)
    function = names["forward"]
    assert isinstance(function, FunctionType)
    return function


def names_of(body: str) -> list[str]:
    return list(operations_of(made(body).__code__))


# statements, and the names of their operations in the order of evaluation
NAMED = {
    # calls: the dotted path of what is called, numbered
    "self.proj(x)": ["self_proj_0"],
    "f(x)": ["f_0"],
    "torch.nn.functional.relu(x, inplace=False)": ["torch_nn_functional_relu_0"],
    "self.a(self.b(x))": ["self_b_0", "self_a_0"],
    "f(x); f(y)": ["f_0", "f_1"],
    "x.view(1).transpose(0, 1).contiguous()": ["x_view_0", "transpose_0", "contiguous_0"],
    "self.layers[0](x)": ["getitem_0", "self_layers_0"],
    "self.layers[0].attn(x)": ["getitem_0", "self_layers_attn_0"],
    "(f if x else g)(x)": ["call_0"],
    "getattr(x, 'y')(1)": ["getattr_0", "call_0"],
    "f(*args)": ["f_0"],
    "f(x, *args, k=1, **kwargs)": ["f_0"],
    "(lambda: x)()": ["call_0"],
    # operators: their names in the module operator
    "x + y": ["add_0"],
    "x @ y * 2": ["matmul_0", "mul_0"],
    "-x ** ~y": ["invert_0", "pow_0", "neg_0"],
    "+x": ["pos_0"],
    "z = not x": ["not_0", "z"],
    "x & y | self ^ x": ["and_0", "xor_0", "or_0"],
    "x / y // 2 % 3 - 4": ["truediv_0", "floordiv_0", "mod_0", "sub_0"],
    "x << y >> 1": ["lshift_0", "rshift_0"],
    "x < y": ["lt_0"],
    "z = x <= y == 3 != 4": ["le_0", "eq_0", "ne_0", "z"],
    "z = 0 < x < y < 9": ["lt_0", "lt_1", "lt_2", "z"],
    "x in y": ["contains_0"],
    "x not in y": ["not_contains_0"],
    "x is y": ["is_0"],
    "x is not y": ["is_not_0"],
    # subscripts
    "x[0]": ["getitem_0"],
    "x[1:2]": ["getitem_0"],
    "x[..., -1][0]": ["getitem_0", "getitem_1"],
    "x[0] = y": [],
    "x[0] += 1": ["getitem_0", "iadd_0"],
    # locals: their own names, numbered from the second assignment on
    "h = x": ["h"],
    "h = x; h = y; h = 1": ["h", "h_1", "h_2"],
    "h = g = x": ["h", "g"],
    "a, (b, *c) = x": ["a", "b", "c"],
    "h = x; h += y": ["h", "iadd_0", "h_1"],
    "x += y": ["iadd_0", "x"],
    "for i in x: h = i": ["i", "h"],
    "with f(x) as h: pass": ["f_0", "h"],
    "(h := f(x))": ["f_0", "h"],
    "h: int = 1": ["h"],
    "import os": ["os"],
    "def inner(z): return z + 1": ["inner"],
    # what is returned
    "return x": ["return_0"],
    "if x: return 1\nreturn f(y)": ["return_0", "f_0", "return_1"],
    # what stands in a comprehension belongs to the function
    "h = [f(i) for i in x if i > 2]": ["gt_0", "f_0", "h"],
    "h = {k: g(v) for k, v in x.items()}": ["x_items_0", "g_0", "h"],
    "h = sum(f(i) for i in x)": ["f_0", "sum_0", "h"],
    "h = [[f(i, j) for i in x] for j in y]": ["f_0", "h"],
    # a name of a call is never taken by anything else
    "add(x); z = x + y": ["add_0", "operator_add_0", "z"],
    "h = f(x); h = h(y); h(x)": ["f_0", "h", "h_0", "local_h_1", "h_1"],
    "h = g; h(x)": ["h", "h_0"],
    "x_1 = 1; x = 2; x = 3": ["x_1", "x", "local_x_1"],
    # compiled twice, written once
    "while f(x): y -= 1": ["f_0", "isub_0", "y"],
    "try: x.a()\nfinally: y.b()": ["x_a_0", "y_b_0"],
    "try: f(x)\nexcept ValueError as error: g(error)": ["f_0", "error", "g_0"],
    # what only Python itself calls is none
    "assert x, 'no'": [],
    "class K: pass": ["K"],
    "super().forward(x)": ["forward_0"],
}


@pytest.mark.parametrize("body", NAMED)
def test_operations_are_named(body: str) -> None:
    # without the raise there would be a returned None besides
    assert names_of(f"{body}\nraise SystemExit") == NAMED[body]


def test_operations_stand_in_the_order_of_evaluation() -> None:
    body = "h = self.a(x) + self.b(y)[0]\nreturn [f(i) for i in h], -h"
    expected = "self_a_0 self_b_0 getitem_0 add_0 h f_0 neg_0 return_0".split()
    assert names_of(body) == expected


def test_an_operation_has_the_position_of_its_text() -> None:
    operation = operations_of(made("h = (x +\n     self.f(y))\n").__code__)["self_f_0"]
    assert (operation.line, operation.end_line) == (3, 3)
    assert (operation.column, operation.end_column) == (9, 18)


def test_the_copies_of_a_finally_are_one_operation_with_several_sites() -> None:
    operation = operations_of(made("try: x.a()\nfinally: y.b()").__code__)["y_b_0"]
    assert len(operation.sites) == 2


def test_a_function_without_columns_keeps_its_operations() -> None:
    code = made("h = self.a(x) + 1\nreturn h").__code__
    bare = code.replace(co_linetable=_without_columns(code))
    assert list(operations_of(bare)) == list(operations_of(code))


def _without_columns(code: Any) -> bytes:
    """Write a line table that has lines only, as Python does under -X no_debug_ranges."""
    table = bytearray()
    line = code.co_firstlineno
    for start, end, found in code.co_lines():
        for first in range(start // 2, end // 2, 8):
            count = min(8, end // 2 - first)
            delta = (found or line) - line
            line += delta
            table.append(0x80 | (13 << 3) | (count - 1))
            value = (abs(delta) << 1) | (delta < 0)
            while value > 63:
                table.append(0x40 | (value & 63))
                value >>= 6
            table.append(value)
    return bytes(table)
