"""Schedule: when each node is computed, and what the backward pass is handed.

Six stages, in this order: `once` and `hoisted` before the loop, `loop` step by step; then, for
gradients, `prepare`, `reverse` step by step from the end, and `after` for all steps at once. Only
what the step before needs for its own gradient is in `reverse`: products over the batch (gradients
of weights), sums over it (of biases) and the input's gradient come after.

The policy of saving: what the backward pass reads of the forward pass is saved, except for what is
computed again: cheap elementwise results all of whose operands are at hand, and any elementwise
function of one value, such as the tanh of an LSTM's c, where that value lies in memory anyway or is
cheaply made of what does, such as a normalised gate. One function more costs about as much as
reading its result, and its memory is saved. Of such a value less the mean of its row, the mean is
saved if that is an eighth of the row or less. What is compared with the largest of its row is
saved, too: computed again, it might differ in its last bit, and nothing would be the largest. A
layer's output, the first field of its state, lies in memory for its caller.
"""

from collections.abc import Collection
from typing import NamedTuple

from flexrnn.engine.compiler.graph import Graph, Node
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.split import Dependence, dependences

_VIEWS = ("slice", "concat", "reshape", "expand", "transpose", "detach", "opaque")
_LOSSLESS = ("slice", "reshape", "expand", "transpose", "detach", "opaque", "neg")  # no bit is lost
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_PART = 8  # of a row, and less, that is saved in its place


class Schedule(NamedTuple):
    """Indices of nodes by stage. A node that is computed again stands in two stages."""

    once: tuple[int, ...] = ()
    hoisted: tuple[int, ...] = ()
    loop: tuple[int, ...] = ()
    prepare: tuple[int, ...] = ()
    reverse: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()  # of the forward pass, at every step, for the backward pass
    kept: tuple[int, ...] = ()  # of `reverse`, at every step, for `after`
    fields: tuple[str, ...] = ()  # of the state, in order


def schedule(graph: Graph) -> Schedule:
    """Give every node its stage."""
    depends = dependences(graph)

    def computed(indices: Collection[int], *kinds: Dependence) -> tuple[int, ...]:
        return tuple(
            i for i in sorted(indices) if graph.nodes[i].op != "input" and depends[i] in kinds
        )

    forward = graph.ancestors([i for name, i in graph.outputs.items() if name[:6] == "state."])
    carried = [i for name, i in graph.outputs.items() if name.startswith("grad.state.")]
    others = [i for name, i in graph.outputs.items()
              if name.startswith("grad.") and not name.startswith("grad.state.")]  # fmt: skip
    needed = graph.ancestors([*carried, *others])

    saved = _saved(graph, forward, needed - forward, depends)
    reverse = _until(graph, carried, saved, depends)
    given = {i for name, i in graph.inputs.items() if name.startswith("cotangent.")}
    cotangents = given | {i for i in reverse if depends[i] == Dependence.COTANGENT}
    after = _until(graph, others, saved | cotangents, depends)
    kept = {a for i in after for a in graph.nodes[i].args} | set(others)
    return Schedule(
        once=computed(forward, Dependence.PARAMETER),
        hoisted=computed(forward, Dependence.INPUT),
        loop=computed(forward, Dependence.STATE),
        prepare=computed(needed - forward, Dependence.PARAMETER),
        reverse=tuple(sorted(reverse)),
        after=tuple(sorted(after)),
        saved=tuple(sorted(saved | _states_read(graph, reverse | after))),
        kept=tuple(sorted(kept & cotangents)),
        fields=tuple(name[6:] for name in graph.inputs if name.startswith("state.")),
    )


def saved_floats(graph: Graph, plan: Schedule) -> int:
    """Numbers that a program keeps for the backward pass, per time step and batch row."""
    return sum(_width(graph, index) for index in plan.saved)


def _width(graph: Graph, index: int) -> int:
    width = 1
    for size in graph.nodes[index].shape[1:]:
        width *= int(size)
    return width


def _saved(
    graph: Graph, forward: set[int], backward: set[int], depends: list[Dependence]
) -> set[int]:
    """The policy that the head of this file states."""
    read = {
        arg
        for index in backward
        for arg in graph.nodes[index].args
        if arg in forward and depends[arg] > Dependence.PARAMETER and graph.nodes[arg].op != "input"
    }
    compared = _compared(graph) if backward else set[int]()
    saved = _states_read(graph, backward)
    plain = saved | _lying(graph, saved)  # it lies in memory, or is cheaply made of what does
    at_hand = set(saved)
    output = next(i for name, i in graph.outputs.items() if name.startswith("state."))
    for index in sorted(forward):
        node, cheap = graph.nodes[index], _is_cheap(graph, index)
        others = {arg for arg in node.args if arg in at_hand}
        if index in read and index not in saved and cheap and others <= plain:
            narrow = _missing_narrow(graph, index, at_hand)
            for known in (saved, plain, at_hand):
                known.update(narrow)
        parameter, made_of_plain = (
            depends[index] == Dependence.PARAMETER,
            plain.issuperset(node.args),
        )
        read_exactly = index in compared and depends[index] > Dependence.PARAMETER
        again = cheap and at_hand.issuperset(node.args)
        function = _is_function(node) and made_of_plain and index != output
        if parameter or (again and made_of_plain):
            plain.add(index)
        if node.op == "input" or (not read_exactly and (parameter or again or function)):
            at_hand.add(index)
        elif index in read or read_exactly:
            for known in (saved, plain, at_hand):
                known.add(index)
    return saved


def _compared(graph: Graph) -> set[int]:
    """Values of which the largest in a row, or the smallest, is compared with some."""

    def base(index: int) -> int:
        while graph.nodes[index].op in _LOSSLESS:
            index = graph.nodes[index].args[0]
        return index

    found: set[int] = set()
    for node in graph.nodes:
        if node.op in _COMPARISONS:
            values = {base(index) for index in node.args}
            rows = {base(graph.nodes[i].args[0]) for i in values if graph.nodes[i].op == "amax"}
            found |= values & rows
    return found


def _missing_narrow(graph: Graph, index: int, at_hand: set[int]) -> set[int]:
    """The operands that are not at hand, if saving them takes a small part of saving the node."""
    missing = {arg for arg in graph.nodes[index].args if arg not in at_hand}
    width = sum(_width(graph, arg) for arg in missing)
    return missing if width * _PART <= _width(graph, index) else set()


def _lying(graph: Graph, saved: set[int]) -> set[int]:
    """The inputs that lie in memory for the backward pass whatever it reads."""
    states = {
        i for name, i in graph.inputs.items()
        if name.startswith("state.") and graph.outputs.get(name) in (*saved, i)
    }  # fmt: skip
    return states | {i for name, i in graph.inputs.items() if name.startswith("x")}


def _is_function(node: Node) -> bool:
    """Whether a node is an elementwise function of one value."""
    return node.op in OPS and len(node.args) == 1


def _is_cheap(graph: Graph, index: int) -> bool:
    op = graph.nodes[index].op
    return op in _VIEWS or (op in OPS and OPS[op].cheap)


def _until(graph: Graph, roots: list[int], given: set[int], depends: list[Dependence]) -> set[int]:
    """What has to be computed for `roots` where inputs, parameters and `given` are at hand."""
    found: set[int] = set()
    pending = list(roots)
    while pending:
        index = pending.pop()
        at_hand = index in given or depends[index] == Dependence.PARAMETER
        if index not in found and not at_hand and graph.nodes[index].op != "input":
            found.add(index)
            pending.extend(graph.nodes[index].args)
    return found


def _states_read(graph: Graph, backward: set[int]) -> set[int]:
    """New states whose history is kept because the backward pass reads the state before a step.

    Of a state that stays what it is the first value says everything.
    """
    read = {arg for index in backward for arg in graph.nodes[index].args}
    constant = graph.constant_states()
    return {
        graph.outputs[name]
        for name, index in graph.inputs.items()
        if name.startswith("state.") and index in read and name not in constant
    }
