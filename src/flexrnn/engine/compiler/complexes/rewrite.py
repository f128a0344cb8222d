"""A step that has complex numbers, in real ones.

States are real, and so are programs. What torch has written down of complex numbers that depend on
rows is written anew, each as a pair of real ones; what depends on parameters alone stays complex,
for torch computes it ahead, and only its parts meet rows. Autograd differentiates that, and so a
complex parameter has the gradient that torch gives it.
"""

from collections.abc import Sequence
from operator import getitem
from typing import Any

from torch import Tensor, fx

from flexrnn.engine.compiler.complexes.rules import RULES
from flexrnn.engine.compiler.complexes.writer import Pair, Writer, aten
from flexrnn.engine.compiler.parameters import is_pure
from flexrnn.engine.compiler.refusal import CannotCompileError

_WHY = (
    "a program has no such operation on complex numbers, which two real ones can be: "
    "torch.view_as_real, or .real and .imag"
)
_WRITES = (  # of which torch has a derivative in real numbers alone
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten.diagonal_scatter.default,
)


def in_real_numbers(graph: fx.Graph, names: Sequence[str]) -> None:
    """Rewrite a step, if there is anything complex in it, in its place.

    Args:
        graph: the step, as torch has written it down.
        names: of its inputs.

    Raises:
        CannotCompileError: an operation has no form in real numbers here.
    """
    if any(_is_complex(node) for node in graph.nodes):
        _Rewrite(graph).run(names)


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    several = value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(x, Tensor) and x.is_complex() for x in several)


class _Rewrite:
    def __init__(self, graph: fx.Graph):
        self.graph, self.write = graph, Writer(graph)
        self.fixed: set[fx.Node] = set()  # what depends on parameters alone
        self.pairs: dict[fx.Node, Pair] = {}
        self.seen: dict[Any, Pair] = {}  # of what complex numbers have become as real ones

    def run(self, names: Sequence[str]) -> None:
        unnamed = iter(names)
        for node in [*self.graph.nodes]:
            if node.op == "placeholder":
                if next(unnamed).startswith("param."):
                    self.fixed.add(node)
            elif node.op == "output":
                break
            elif node.op == "get_attr" or self._is_fixed(node):
                self.fixed.add(node)
            else:
                self.write.node = node
                with self.graph.inserting_before(node):
                    self._rewrite(node)

    def _is_fixed(self, node: fx.Node) -> bool:
        if node.target in _WRITES and _is_complex(node):
            return False
        return is_pure(node) and self.fixed.issuperset(node.all_input_nodes)

    def _rewrite(self, node: fx.Node) -> None:
        if node.target is aten.select.int and node.args[0] in self.seen:
            self._part(node, *node.args)
            return
        if not _is_complex(node) and not any(map(_is_complex, node.all_input_nodes)):
            return
        if node.target is getitem:
            parts, number = self._with_pairs(node.args)
            self.pairs[node] = Pair(*(self.write.item(part, number) for part in parts))
            return
        made = self._made(node)
        if isinstance(made, Pair) != _is_complex(node):
            raise self.write.refused("it makes real numbers of complex ones, as .real would do")
        if isinstance(made, Pair):
            value = node.meta["val"]
            self.pairs[node] = self.write.fitted(made, value) if isinstance(value, Tensor) else made
            return
        if node.target is aten.view_as_real.default:
            self.seen[made] = self._with_pairs(node.args[0])
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)

    def _made(self, node: fx.Node) -> Any:
        """What the rule of an operation makes: a pair; or a node, where that is real."""
        target: Any = node.target
        known = getattr(target, "namespace", "") == "aten"
        rule = RULES.get(target.overloadpacket.__name__) if known else None
        if rule is None:
            raise self.write.refused(_WHY)
        args, kwargs = self._with_pairs(node.args), self._with_pairs(node.kwargs)
        try:
            return rule(self.write, target, *args, **kwargs)
        except CannotCompileError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # odd arguments
            raise self.write.refused(_WHY) from error

    def _part(self, node: fx.Node, seen: Any, dim: Any, number: Any) -> None:
        """`z.real` is there already."""
        if dim in (-1, seen.meta["val"].dim() - 1) and number in (0, 1):
            node.replace_all_uses_with(self.write.whole(self.seen[seen])[number])

    def _with_pairs(self, value: Any) -> Any:
        """Arguments with pairs in the place of what is complex."""
        if isinstance(value, fx.Node):
            return self._pair(value) if _is_complex(value) else value
        if isinstance(value, (list, tuple)):
            return [self._with_pairs(part) for part in value]
        if isinstance(value, dict):
            return {name: self._with_pairs(part) for name, part in value.items()}
        return value

    def _pair(self, node: fx.Node) -> Pair:
        if node in self.pairs:
            return self.pairs[node]
        if node not in self.fixed:
            raise self.write.refused(
                "complex numbers that it reads are none of the cell's; pairs of real ones would do"
            )
        plain = self.write(aten.resolve_conj.default, node)
        seen = self.write(aten.view_as_real.default, plain)
        last = seen.meta["val"].dim() - 1
        parts = (self.write(aten.select.int, seen, last, k) for k in (0, 1))
        self.pairs[node] = Pair(*parts)
        return self.pairs[node]
