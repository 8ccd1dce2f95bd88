"""Constructors for generated syntax: requests, assignments and calls, as `libcst` nodes.

The docstring of each function is the text that it generates, where that is one line.
"""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst


def name(text: str) -> cst.Name:
    """`text`"""
    return cst.Name(text)


def string(text: str) -> cst.SimpleString:
    """`"text"`"""
    return cst.SimpleString(f'"{text}"')


def integer(value: int) -> cst.Integer:
    """`7`"""
    return cst.Integer(str(value))


def attribute(value: cst.BaseExpression, attr: str) -> cst.Attribute:
    """`value.attr`"""
    return cst.Attribute(value, cst.Name(attr))


def call(function: cst.BaseExpression, *args: cst.BaseExpression) -> cst.Call:
    """`function(args, ...)`"""
    return cst.Call(function, [cst.Arg(enclosed(arg)) for arg in args])


def enclosed(node: cst.BaseExpression) -> cst.BaseExpression:
    """Parenthesise an expression that could not be an argument or a tuple element without."""
    if isinstance(node, (cst.Tuple, cst.NamedExpr, cst.Yield)) and not node.lpar:
        return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return node


def request(
    verb: str, *operands: cst.BaseExpression | cst.BaseElement, statement: bool = False
) -> cst.Yield:
    """`(yield ("verb", operands, ...))`; with `statement`, without the outer parentheses."""
    elements = [
        operand if isinstance(operand, cst.BaseElement) else cst.Element(enclosed(operand))
        for operand in (string(verb), *operands)
    ]
    if len(elements) == 1:
        elements = [cst.Element(string(verb), comma=cst.Comma())]
    value = cst.Tuple(elements)
    if statement:
        return cst.Yield(value)
    return cst.Yield(value, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def statement(*parts: cst.BaseSmallStatement | cst.BaseExpression) -> cst.SimpleStatementLine:
    """One line of simple statements."""
    return cst.SimpleStatementLine(
        [cst.Expr(part) if isinstance(part, cst.BaseExpression) else part for part in parts]
    )


def assign(
    target: cst.BaseAssignTargetExpression, value: cst.BaseExpression
) -> cst.SimpleStatementLine:
    """`target = value`"""
    return statement(cst.Assign([cst.AssignTarget(target)], value))


def block(statements: Sequence[cst.BaseStatement]) -> cst.IndentedBlock:
    """An indented suite."""
    return cst.IndentedBlock(list(statements) or [statement(cst.Pass())])


def function(
    function_name: str, params: Sequence[str], body: Sequence[cst.BaseStatement]
) -> cst.FunctionDef:
    """`def function_name(params, ...):` with a body."""
    return cst.FunctionDef(
        cst.Name(function_name),
        cst.Parameters([cst.Param(cst.Name(param)) for param in params]),
        block(body),
    )


def expression(node: object) -> cst.BaseExpression:
    """Narrow the type of a node that must be an expression."""
    if not isinstance(node, cst.BaseExpression):
        raise TypeError(f"{type(node).__name__} is not an expression")
    return node


def target(node: object) -> cst.BaseAssignTargetExpression:
    """Narrow the type of a node that must be the target of an assignment."""
    if not isinstance(node, cst.BaseAssignTargetExpression):
        raise TypeError(f"{type(node).__name__} is not a target")
    return node


def statements_of(suite: cst.BaseSuite) -> list[cst.BaseStatement]:
    """Return the statements of a suite, which may be on the line of its header."""
    if isinstance(suite, cst.SimpleStatementSuite):
        return [cst.SimpleStatementLine(suite.body)]
    return list(cst.ensure_type(suite, cst.IndentedBlock).body)
