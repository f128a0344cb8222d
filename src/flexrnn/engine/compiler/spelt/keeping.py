"""Whether somebody asks if a tensor requires a gradient only to keep it for a `backward`.

`if x.requires_grad: ctx.save_for_backward(x)` in the `forward` of a `torch.autograd.Function`, as
libraries of spiking neurons have it, decides nothing but what `ctx` holds. The answer is yes then,
for the `backward` is written down in any case. What asks for anything else is told nothing.
"""

import ast
import inspect
import textwrap
from functools import lru_cache
from types import CodeType, FrameType

from torch import Tensor


def only_keeps(x: Tensor, frame: FrameType | None) -> bool:
    """Whether a frame is a `forward` that asks for `requires_grad` to keep something, no more.

    It does so of all that it has a derivative by: else `backward` may be called though it is told
    no, and see what has been kept.
    """
    if frame is None or frame.f_code.co_name != "forward" or not frame.f_code.co_argcount:
        return False
    context = frame.f_locals.get(frame.f_code.co_varnames[0])
    given = getattr(context, "given", ())
    reals = [arg for arg in given if isinstance(arg, Tensor) and not _is_flat(arg)]
    return len(reals) == 1 and reals[0] is x and frame.f_lineno in _lines(frame.f_code)


def _is_flat(x: Tensor) -> bool:
    """Whether it is of a dtype that has no derivative."""
    return not (x.is_floating_point() or x.is_complex())


@lru_cache(512)
def _lines(code: CodeType) -> frozenset[int]:
    """The lines of the questions in a function that decide nothing but what its `ctx` holds."""
    try:
        source = textwrap.dedent(inspect.getsource(code))
        (function,) = ast.parse(source).body
    except (OSError, SyntaxError, ValueError, TypeError):
        return frozenset()
    context = code.co_varnames[0]
    nodes = [*ast.walk(function)]
    reads = (node for node in nodes if isinstance(node, ast.Name) and node.id == context)
    writes = [n.value for n in nodes if isinstance(n, ast.Attribute) and _is_of(n, context)]
    if any(read not in writes for read in reads):  # it is handed on, or read
        return frozenset()
    asks = [node for node in nodes if isinstance(node, ast.If) and _keeps(node, context)]
    first = code.co_firstlineno - 1
    found = [range(first + n.test.lineno, first + (n.test.end_lineno or 0) + 1) for n in asks]
    others = [first + node.lineno for node in nodes
              if isinstance(node, ast.Attribute) and node.attr == "requires_grad"
              and not any(node in ast.walk(ask.test) for ask in asks)]  # fmt: skip
    return frozenset(line for lines in found for line in lines) - frozenset(others)


def _is_of(node: ast.Attribute, context: str) -> bool:
    """Whether it sets an attribute of `ctx`, or calls what says how its backward is to be."""
    if not _is_name(node.value, context):
        return False
    return isinstance(node.ctx, ast.Store) or node.attr in _SAYS


def _keeps(node: ast.If, context: str) -> bool:
    """`if x.requires_grad:`, and below it `ctx` gets attributes or tensors, and nothing is done."""
    test = node.test
    if not (isinstance(test, ast.Attribute) and test.attr == "requires_grad") or node.orelse:
        return False
    return _is_plain(test.value) and all(_sets(statement, context) for statement in node.body)


def _sets(statement: ast.stmt, context: str) -> bool:
    if isinstance(statement, ast.Assign):
        own = all(
            isinstance(t, ast.Attribute) and _is_name(t.value, context) for t in statement.targets
        )
        return own and _is_plain(statement.value)
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    saves = call.func.attr == "save_for_backward" and _is_name(call.func.value, context)
    return saves and not call.keywords and all(map(_is_plain, call.args))


def _is_plain(node: ast.expr) -> bool:
    """Whether an expression does nothing: no call is in it."""
    return all(isinstance(part, _PLAIN) for part in ast.walk(node))


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


_SAYS = ("save_for_backward", "mark_non_differentiable", "set_materialize_grads")
_PLAIN = (ast.Name, ast.Attribute, ast.Constant, ast.Tuple, ast.expr_context)
