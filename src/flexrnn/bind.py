# pyright: reportPrivateUsage=false
# A module's parameters and submodules live in `_parameters` and `_modules`: there is no public way
# to copy the one without the other.
"""Who owns parameters: the layer. A cell gives them up, and a copy of it borrows them for one call.

So every mechanism of torch that acts on a module's parameters (parametrizations, pruning,
`functional_call`, tying, `vmap` over stacked ones) acts on the layer's, and the next call sees it.
"""

from collections.abc import Hashable, Mapping
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from flexrnn.cell import LENT, Cell
from flexrnn.engine import traced
from flexrnn.engine.step import frozen, members
from flexrnn.engine.tables import trim
from flexrnn.engine.witness import CannotWatchError, Witness
from flexrnn.references import (
    forget,
    give,
    given_before,
    learns,
    note,
    rebind,
    refresh,
    share,
    shares,
    strangers,
)

C = TypeVar("C", bound=Cell)


class Slot(NamedTuple):
    """One place in a cell where a parameter belongs."""

    module: str  # path of the submodule inside the cell, "" for the cell itself
    name: str  # the parameter's name there
    flat: str  # its name in the layer


def move_parameters(cell: Cell, layer: nn.Module, suffix: str) -> tuple[Slot, ...]:
    """Take the parameters out of a cell and register them in the layer under torch's flat names.

    `norm.weight` becomes `norm_weight` + suffix (`_l0`, `_l1_reverse`). A parameter that the cell
    holds at several places is registered once, and so is that of a module that several cells of
    the layer share.

    Raises:
        ValueError: two parameters would get the same name, or one that the layer uses already; or
            a module has given its parameters to another layer.
        TypeError: a module of the cell is compiled by torch.jit.
    """
    for path, module in cell.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and learns(module):
            raise TypeError(
                f"{type(cell).__name__}: {path or 'the cell'} is a torch.jit.ScriptModule, which "
                "cannot borrow parameters; give the cell the module without torch.jit.script"
            )
    note(cell)
    slots = [Slot(*place) for place in given_before(cell, layer)]
    shared = len(slots)
    names: dict[nn.Parameter, str] = {}
    for path, parameter in list(cell.named_parameters(remove_duplicate=False)):
        module, _, name = path.rpartition(".")
        if parameter not in names:
            flat = names[parameter] = path.replace(".", "_") + suffix
            if hasattr(layer, flat):
                raise ValueError(
                    f"{type(cell).__name__}: parameter {path} would be the layer's {flat}, "
                    "a name that is taken"
                )
            layer.register_parameter(flat, parameter)
        slots.append(Slot(module, name, names[parameter]))
    for slot in slots[shared:]:
        # A module that the cell holds under two names has two slots and one parameter.
        give(cell.get_submodule(slot.module), slot.name, layer, slot.flat)
    return (*slots[shared:], *slots[:shared])


def cells_of(layer: nn.Module) -> list[Any]:
    """The cells of a layer, past `torch.export`, which hands out proxies of what is in a model.

    It does so where the model holds some module twice; no copy can be made of a proxy.
    """
    return list(layer.__dict__["_modules"]["cells"]._modules.values())


def bind(cell: C, slots: tuple[Slot, ...], layer: nn.Module) -> C:
    """A copy of the cell whose parameters are what the layer's attributes are at this moment.

    The copy is shallow: buffers, options and hooks are the cell's own, so that a buffer that `step`
    updates is updated for good. The cell itself is not touched, so that calls on several threads
    do not meet.
    """
    if torch.compiler.is_dynamo_compiling():  # a copy looks at every option
        traced.specialize(True)
        copy, copies = _whole(cell)
        traced.specialize(False)
    else:
        copy, copies = _whole(cell)
    copy.__dict__[LENT] = "call"
    for slot in slots:
        copy.get_submodule(slot.module)._parameters[slot.name] = getattr(layer, slot.flat)
    refresh(copies)
    return copy


def copy_of(cell: C) -> C:
    """A copy of a cell that shares everything with it, buffers too, but its own attributes."""
    return _whole(cell)[0]


def tensors_of(cell: Cell) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes of a bound cell, by their paths.

    Then tensors that only lists and other containers lead to, but for Dynamo, which knows no
    identities.
    """
    found = named_tensors(cell)
    return found | strangers(cell, found) if _is_looked_into(cell) else found


def _is_looked_into(cell: nn.Module) -> bool:
    return shares(cell) and not torch.compiler.is_dynamo_compiling()


def named_tensors(cell: Cell) -> dict[str, Tensor]:
    """The tensors that a cell's modules have under a name of their own."""
    found: dict[str, Tensor] = {}
    for prefix, module in (
        cell.named_modules(remove_duplicate=False) if cell._modules else [("", cell)]
    ):
        prefix = f"{prefix}." if prefix else ""
        for held in (module._parameters, module._buffers, _held(module)):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value
    return found


def with_tensors(cell: C, tensors: Mapping[str, Tensor]) -> C:
    """A copy of a cell with other tensors in the places that `tensors_of` names.

    The cell may be one that has given its parameters up: they are put back.
    """
    copy, copies = _whole(cell)
    copy.__dict__[LENT] = None
    for module in copies:
        module.__dict__["_buffers"] = dict(module._buffers)
    apart = strangers(cell, named_tensors(cell)) if _is_looked_into(cell) else {}
    for path, tensor in tensors.items():
        if path in apart:
            continue
        prefix, _, name = path.rpartition(".")
        module = copy.get_submodule(prefix)
        places: list[Any] = [module._parameters, module._buffers, vars(module)]
        for held in [held for held in places if name in held] or places[:1]:
            held[name] = tensor
    refresh(copies)
    if not apart.keys() <= tensors.keys():  # Dynamo has not looked there, nor is it done later
        forget(copy)
    elif _is_looked_into(copy):
        share(copy, tensors_of(cell), tensors)
    return copy


def identity(module: nn.Module) -> Hashable:
    """Equal where `fingerprint` is, and cheap while nothing has changed since the last call."""
    entry = _known.get(id(module))
    if entry is not None and entry[0]() is module and entry[1].still_holds():
        return entry[2]
    value = fingerprint(module)
    try:
        witness = Witness(module)
    except CannotWatchError:
        return value
    number = _numbers.setdefault(value, next(_count))
    gone = ref(module, partial(_forget, _known, id(module)))
    _known[id(module)] = (gone, witness, number)
    trim(_known, _KEPT)
    trim(_numbers, _KEPT)
    return number


_Known = dict[int, tuple[ref[nn.Module], Witness, int]]


def _forget(known: _Known, address: int, gone: ref[nn.Module]) -> None:
    """Let go of what a module held, which is no more; another may have its place by now."""
    entry = known.get(address)
    if entry is not None and entry[0] is gone:
        known.pop(address, None)


_known: _Known = {}
_numbers: dict[Hashable, int] = {}  # of every fingerprint
_count = count()
_KEPT = 512  # the oldest goes first


def fingerprint(module: nn.Module) -> Hashable:
    """Class, options and mode of a module and of all inside it: everything but tensors.

    A class counts by what it holds, for a method or a number there may be replaced.
    """
    skipped = ("_parameters", "_buffers", "_modules")
    own = {name: value for name, value in vars(module).items() if name not in skipped}
    children = [
        (name, child if child is None else fingerprint(child))
        for name, child in module._modules.items()
    ]
    return (type(module), members(type(module)), frozen(own), tuple(children))


def _whole(cell: C) -> tuple[C, list[nn.Module]]:
    """A copy of a cell, and all modules of it, which lead to one another as the cell's do."""
    seen: dict[nn.Module, nn.Module] = {}
    copy = _copy(cell, seen)
    rebind(seen)
    return copy, [*seen.values()]


M = TypeVar("M", bound=nn.Module)


def _copy(module: M, seen: dict[nn.Module, nn.Module]) -> M:
    """Copy a tree of modules without its tensors; a module that appears twice is copied once."""
    if module not in seen:
        copy = seen[module] = module.__class__.__new__(module.__class__)
        children = {
            name: child if child is None else _copy(child, seen)
            for name, child in module._modules.items()
        }
        own = copy.__dict__
        for name, value in _held(module).items():  # Dynamo of torch 2.11 knows no `update` here
            own[name] = value
        own["_parameters"], own["_modules"] = dict(module._parameters), children
    return seen[module]  # pyright: ignore[reportReturnType]  # the copy of a module of type M


def _held(module: nn.Module) -> dict[str, Any]:
    """`vars(module)`, which Dynamo of torch 2.11 does not list."""
    if not torch.compiler.is_dynamo_compiling():
        return vars(module)
    names = module.__dict__.get(_NAMES)
    if not names:
        names = traced.names(id(module))
        # One name more brings Dynamo back: it may hide a class's.
        if _LISTS:
            list(module.__dict__)
        else:
            for name in traced.of_class(id(module)):
                hasattr(module, name)
    return {name: module.__dict__[name] for name in names} | {_NAMES: names}


_NAMES = "_flexrnn_names"  # under Dynamo a copy tells what it holds
# Whether Dynamo lists attributes, and guards the list.
_LISTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
