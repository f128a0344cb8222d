# pyright: reportPrivateUsage=false
# Where a module keeps its parameters, and torch's recurrent layers theirs once more, has no public
# name.
"""Modules and tensors of a cell that are reached by other ways than their names.

A bound method that is kept as an attribute, a list of layers, a function that closes over a module:
in a copy of a cell they have to lead to the copy's modules, for those that they were made with have
given their parameters up. A dict of parameters leads to the layer's as it is, and to others where a
step runs with others in their place. So does a list of tensors that are nobody else's: they are
tensors of the cell as well.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from flexrnn.ways import places, way_of

_REFERS = "_flexrnn_refers"  # of a module: its attributes that led to others when it was made
_GAVE = "_flexrnn_gave"  # of a module: parameters that it has given up; a copy of it tells so, too
_SHARES = "_flexrnn_shares"  # of a cell: attributes, by module, that led to a tensor
_TORCHS = set(vars(nn.Module()))  # such as the tables of hooks, which call whom they were given


_ANOTHER = nn.Identity()  # than any module or tensor of a cell; it can be called, as partial wants
# Of a module's parameter that has been given up: the layer that has it, and its name there.
_Given = dict[str, tuple[ref[nn.Module], str]]
_gave: WeakKeyDictionary[nn.Module, _Given] = WeakKeyDictionary()


def give(module: nn.Module, name: str, layer: nn.Module, flat: str) -> None:
    """Take a parameter out of a module, and remember that it had one."""
    module._parameters.pop(name, None)
    module.__dict__[_GAVE] = (*module.__dict__.get(_GAVE, ()), name)
    _gave.setdefault(module, {})[name] = ref(layer), flat


def given_before(cell: nn.Module, layer: nn.Module) -> list[tuple[str, str, str]]:
    """What modules of a cell have given to a layer as those of another cell of it.

    Returns:
        The path of each module, the parameter's name in it, and its name in the layer.

    Raises:
        ValueError: a module has given parameters to another layer, or is a copy of one that has.
    """
    found: list[tuple[str, str, str]] = []
    modules = [*cell.named_modules(remove_duplicate=False)]
    # A layer's cells are its own affair, also of one that is copied into a cell.
    inside = tuple(f"{path}." for path, module in modules if "_slots" in vars(module))
    for path, module in modules:
        for name, (owner, flat) in _gave.get(module, {}).items():
            if name in module._parameters:  # it has got another one
                continue
            if owner() is not layer:
                raise ValueError(
                    f"{type(cell).__name__}: {path or 'the cell'} has given its {name} to another "
                    "layer; give each layer a module of its own"
                )
            found.append((path, name, flat))
        lacks = [name for name in vars(module).get(_GAVE, ()) if name not in module._parameters]
        if lacks and module not in _gave and not path.startswith(inside):
            raise ValueError(
                f"{type(cell).__name__}: {path or 'the cell'} is a copy of a module that has given "
                f"its {lacks[0]} to a layer, and has none; give each layer a module of its own"
            )
    return found


def gave(module: nn.Module, name: str) -> bool:
    """Whether a module, as it was made, had a parameter that it has given up."""
    return name in _gave.get(module, ())


def learns(module: nn.Module) -> bool:
    """Whether a module has parameters, its own or those of what is inside it, or has given some."""
    return next(module.parameters(), None) is not None or any(m in _gave for m in module.modules())


def note(cell: nn.Module) -> None:
    """Write down which attributes of a cell's modules lead to tensors, or modules with parameters.

    Later calls look at these alone, and at what they hold by then.
    """
    modules = [module for module in cell.modules() if learns(module)]
    led = [
        (path, name)
        for path, module in cell.named_modules()
        for name, value in vars(module).items()
        if name not in _TORCHS and not isinstance(value, Tensor) and any(_tensors(value, "", set()))
    ]
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
    """Whether some container of a cell led to a tensor when the cell was made."""
    return _SHARES in cell.__dict__


def forget(cell: nn.Module) -> None:
    """Let the containers of a copied cell be nobody's business."""
    del cell.__dict__[_SHARES]


def shared(cell: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str | None, ...]:
    """To which of its tensors the containers of a cell lead, one after another, by their paths.

    A program knows tensors by these paths, and is another one where a container leads to others;
    None is a tensor that is none of them.
    """
    if not shares(cell):
        return ()
    paths = {id(tensor): path for path, tensor in tensors.items()}
    return tuple(paths.get(id(tensor)) for _, _, tensor in _held(cell))


def inside(cell: nn.Module) -> dict[str, tuple[int, ...]]:
    """Which tensors containers of a cell hold, by the paths of the attributes that these are."""
    found: dict[str, tuple[int, ...]] = {}
    for attribute, _, tensor in _held(cell):
        found[attribute] = (*found.get(attribute, ()), id(tensor))
    return found


def strangers(cell: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to which containers of a cell lead and that are none of these.

    Their paths are of the attribute and the place in it: `supports.0`, `p.v_th`.
    """
    known = {id(tensor) for tensor in tensors.values()}
    found: dict[str, Tensor] = {}
    for _, path, tensor in _held(cell):
        if id(tensor) not in known and tensor.layout is torch.strided:
            known.add(id(tensor))
            while path in found or path in tensors:
                path += "_"
            found[path] = tensor
    return found


def _held(cell: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Every tensor that containers of a cell hold: the attribute's path, the place's in it."""
    seen: set[int] = set()
    for path, name in cell.__dict__.get(_SHARES, ()):
        attribute = f"{path}.{name}" if path else name
        value = vars(cell.get_submodule(path)).get(name)
        for place, tensor in _tensors(value, attribute, seen):
            yield attribute, place, tensor


def _tensors(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif (way := way_of(type(value))) and id(value) not in seen:
        seen.add(id(value))
        parts: list[Any] = []

        def note(part: Any) -> Any:
            parts.append(part)
            return part

        way(value, note)
        for label, part in zip(places(value, len(parts)), parts, strict=True):
            yield from _tensors(part, f"{path}.{label}", seen)


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
    way = way_of(type(value))
    if way is None:
        own = isinstance(value, (nn.Module, Tensor))
        return others.get(id(value), value) if own else value
    if torch.compiler.is_dynamo_compiling():  # torch 2.11 has no `id` of a list there
        return way(value, lambda part: _rebound(part, others))
    if id(value) in others:
        return others[id(value)]
    others[id(value)] = value  # what holds itself comes by here again
    others[id(value)] = made = way(value, lambda part: _rebound(part, others))
    return made
