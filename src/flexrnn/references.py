# pyright: reportPrivateUsage=false
# Where a module keeps its parameters, and torch's recurrent layers theirs once more, has no public
# name.
"""Modules and tensors of a cell that are reached by other ways than their names.

A bound method that is kept as an attribute, a list of layers, a function that closes over a module:
in a copy of a cell they have to lead to the copy's modules, for those that they were made with have
given their parameters up. A dict of parameters leads to the layer's as it is, and to others where a
step runs with others in their place.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from flexrnn.ways import way_of

_REFERS = "_flexrnn_refers"  # of a module: its attributes that led to others when it was made
_SHARES = "_flexrnn_shares"  # of a cell: attributes, by module, that led to a tensor of its own
_TORCHS = set(vars(nn.Module()))  # such as the tables of hooks, which call whom they were given


_ANOTHER = nn.Identity()  # than any module or tensor of a cell; it can be called, as partial wants
_gave: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def give(module: nn.Module, name: str) -> None:
    """Take a parameter out of a module, and remember that it had one."""
    module._parameters.pop(name, None)
    _gave.setdefault(module, set()).add(name)


def gave(module: nn.Module, name: str) -> bool:
    """Whether a module, as it was made, had a parameter that it has given up."""
    return name in _gave.get(module, ())


def learns(module: nn.Module) -> bool:
    """Whether a module has parameters, its own or those of what is inside it."""
    return next(module.parameters(), None) is not None


def note(cell: nn.Module) -> None:
    """Write down which attributes of a cell's modules lead to modules with parameters, or tensors.

    Later calls look at these alone, and at what they hold by then.
    """
    modules = [module for module in cell.modules() if learns(module)]
    tensors = [*cell.parameters(), *cell.buffers()]
    led = [(p, name) for p, m in cell.named_modules() for name in _leading(m, tensors)]
    for module in cell.modules():
        if names := _leading(module, modules):
            module.__dict__[_REFERS] = names
    if led:
        cell.__dict__[_SHARES] = tuple(led)


def _leading(module: nn.Module, targets: Iterable[object]) -> tuple[str, ...]:
    """The attributes of a module that are no tensors themselves and lead to some of these."""
    others: dict[int, Any] = dict.fromkeys(map(id, targets), _ANOTHER)
    return tuple(
        name
        for name, value in vars(module).items()
        if name not in _TORCHS
        and not isinstance(value, Tensor)
        and _rebound(value, others) is not value
    )


def shares(cell: nn.Module) -> bool:
    """Whether some container of a cell led to one of its tensors when the cell was made."""
    return _SHARES in cell.__dict__


def shared(cell: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str | None, ...]:
    """To which of its tensors the containers of a cell lead, one after another, by their paths.

    A program knows tensors by these paths, and is another one where a container leads to others;
    None is a tensor that is not the cell's.
    """
    if not shares(cell):
        return ()
    paths = {id(tensor): path for path, tensor in tensors.items()}
    found: list[str | None] = []
    seen: set[int] = set()

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            found.append(paths.get(id(value)))
        elif (way := way_of(type(value))) and id(value) not in seen:
            seen.add(id(value))
            way(value, visit)
        return value

    for path, name in cell.__dict__[_SHARES]:
        visit(vars(cell.get_submodule(path)).get(name))
    return tuple(found)


def share(cell: nn.Module, tensors: Mapping[str, Tensor], instead: Mapping[str, Tensor]) -> None:
    """Let the containers of a copied cell lead to other tensors, given by the paths of the old."""
    others = {id(tensor): instead[path] for path, tensor in tensors.items() if path in instead}
    for path, name in cell.__dict__[_SHARES]:
        own = vars(cell.get_submodule(path))
        if name in own:
            own[name] = _rebound(own[name], {**others})


def rebind(copies: Mapping[nn.Module, nn.Module]) -> None:
    """Let copies of modules lead to the copies of those to which the modules lead.

    A method and a function become others, and so do lists, tuples and dicts of modules, of which
    each copy has its own.
    """
    others = {id(module): copy for module, copy in copies.items()}
    for copy in copies.values():
        for name in copy.__dict__.get(_REFERS, ()):
            if name in copy.__dict__:
                copy.__dict__[name] = _rebound(copy.__dict__[name], others)


def refresh(modules: Iterable[nn.Module]) -> None:
    """Let torch's recurrent layers among them read the parameters that they have now."""
    for module in modules:
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
            module.__dict__["_flat_weights"] = [module._parameters.get(name) for name in names]
            module.__dict__["_flat_weight_refs"] = [None] * len(names)  # it need not compare them


def _rebound(value: Any, others: dict[int, Any]) -> Any:
    """A value that leads to other modules, by the `id` of these; itself where it leads to none."""
    if id(value) in others:
        return others[id(value)]
    way = way_of(type(value))
    if way is None:
        return value
    others[id(value)] = value  # what holds itself comes by here again
    others[id(value)] = made = way(value, lambda part: _rebound(part, others))
    return made
