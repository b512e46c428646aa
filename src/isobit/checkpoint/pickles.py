"""The pickles inside old torch files, read as descriptions of tensors. Nothing is unpickled: no object is made, no
function of theirs is called, and nothing is allocated that the pickle's own bytes do not hold.

A pickle is a program for a small stack machine. torch writes state dicts with some forty of its instructions and half a
dozen function names; those are understood here, and anything else ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from isobit.checkpoint.jsonfile import short

MOST_INSTRUCTIONS = 10_000_000  # of one pickle: a model of 100,000 tensors has 6 million
_MOST_AXES = 64
_LARGEST = 2**62  # of sizes, strides and offsets

# torch's names of typed storages -> torch dtype.
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}


class Damaged(ValueError):
    """This is no pickle that torch wrote."""


class Refused(ValueError):
    """The pickle asks for something else than tensors."""


@dataclass(frozen=True)
class Name:
    """A function, class or constant that the pickle names: ``torch.float8_e4m3fn``. It is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A run of bytes that tensors lie in.

    Attributes:
        key: what the file calls it.
        dtype: torch's name of its elements; None for one that is counted in bytes.
        count: its elements, or bytes.
        root: of a view of another storage (before torch 0.4): elements in front of it; else 0.
    """

    key: str
    dtype: str | None
    count: int
    root: int = 0


@dataclass(frozen=True)
class Strided:
    """A dense tensor: element ``i, j`` is number ``offset + i * strides[0] + j * strides[1]`` of the storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Other:
    """A tensor that is not dense: sparse, quantized, nested, without data, or a view that changes its values."""

    what: str


def read_pickle(file: IO[bytes]) -> object:
    """Reads one pickle; the file stands behind it then.

    Returns:
        dictionaries, lists, tuples, numbers and texts, with the classes above in them.

    Raises:
        Refused: it asks for something else than tensors.
        Damaged: it is no pickle, or none that torch wrote.
    """
    machine = _Machine()
    try:
        for number, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return machine.pop()
            act = _INSTRUCTIONS.get(opcode.name)
            if act is None:
                raise Refused(f"it uses the instruction {opcode.name}, which no saved tensor needs")
            if number >= MOST_INSTRUCTIONS:
                raise Damaged(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
            act(machine, arg)
    except (Refused, Damaged):
        raise
    except (ValueError, LookupError, TypeError, EOFError, OverflowError) as error:
        raise Damaged(f"its list of tensors is damaged ({short(str(error))})") from None
    raise Damaged("its list of tensors has no end")


_MARK = object()


class _Machine:
    """The stack, and what the program keeps by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Damaged("its list of tensors is damaged (a mark where a value should be)")
        return value

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise Damaged(f"its list of tensors is damaged (something else than a {kind.__name__} is filled)")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Everything above the last mark."""
        found = []
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        return found[::-1]

    def drop(self) -> None:
        self.stack.pop()

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int, float, bytes, type(None))):  # a nested tuple's hash exhausts the stack
                raise Damaged(f"its list of tensors is damaged (a {type(key).__name__} as a key)")
            target[key] = value

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise Damaged("its list of tensors is damaged (a call of something that is no function)")
        self.push(_call(function, args))

    def build(self) -> None:
        """Attributes of an object, e.g. ``_metadata`` of a state dict: nothing that tensors need."""
        self.pop()
        if not isinstance(self.stack[-1], (dict, Strided, Other)):
            raise Refused("it sets attributes of something that is no tensor")

    def persistent(self) -> None:
        self.push(_storage(self.pop()))

    def global_(self, name: str) -> None:
        module, _, rest = name.partition(" ")
        self.push(Name(module, rest))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(Name(str(module), str(name)))

    def get(self, number: int) -> None:
        self.push(self.memo[number])

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]


Act = Callable[[_Machine, Any], None]


def _instructions() -> dict[str, Act]:
    """Instruction -> what it does."""
    constants = (
        "BININT BININT1 BININT2 LONG1 LONG4 INT LONG BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE"
        " BINSTRING SHORT_BINSTRING STRING BINBYTES SHORT_BINBYTES BINBYTES8"
    )
    acts: dict[str, Act] = {name: lambda machine, arg: machine.push(arg) for name in constants.split()}
    acts |= {name: lambda machine, arg: machine.put(int(arg)) for name in ("BINPUT", "LONG_BINPUT", "PUT")}
    acts |= {
        name: lambda machine, arg: machine.push(machine.memo[int(arg)]) for name in ("BINGET", "LONG_BINGET", "GET")
    }
    return acts | {
        "PROTO": lambda machine, arg: None,
        "FRAME": lambda machine, arg: None,
        "MARK": lambda machine, arg: machine.push(_MARK),
        "POP": lambda machine, arg: machine.drop(),
        "POP_MARK": lambda machine, arg: machine.drop_to_mark(),
        "DUP": lambda machine, arg: machine.push(machine.stack[-1]),
        "NONE": lambda machine, arg: machine.push(None),
        "NEWTRUE": lambda machine, arg: machine.push(True),
        "NEWFALSE": lambda machine, arg: machine.push(False),
        "EMPTY_DICT": lambda machine, arg: machine.push({}),
        "EMPTY_LIST": lambda machine, arg: machine.push([]),
        "EMPTY_TUPLE": lambda machine, arg: machine.push(()),
        "TUPLE": lambda machine, arg: machine.push(tuple(machine.pop_to_mark())),
        "TUPLE1": lambda machine, arg: machine.push((machine.pop(),)),
        "TUPLE2": lambda machine, arg: machine.push((machine.pop(), machine.pop())[::-1]),
        "TUPLE3": lambda machine, arg: machine.push((machine.pop(), machine.pop(), machine.pop())[::-1]),
        "LIST": lambda machine, arg: machine.push(machine.pop_to_mark()),
        "DICT": _dict,
        "APPEND": _append,
        "APPENDS": _appends,
        "SETITEM": lambda machine, arg: machine.set_items([machine.pop(), machine.pop()][::-1]),
        "SETITEMS": lambda machine, arg: machine.set_items(machine.pop_to_mark()),
        "MEMOIZE": lambda machine, arg: machine.put(len(machine.memo)),
        "GLOBAL": lambda machine, arg: machine.global_(arg),
        "STACK_GLOBAL": lambda machine, arg: machine.stack_global(),
        "BINPERSID": lambda machine, arg: machine.persistent(),
        "REDUCE": lambda machine, arg: machine.reduce(),
        "NEWOBJ": lambda machine, arg: machine.reduce(),
        "BUILD": lambda machine, arg: machine.build(),
    }


def _dict(machine: _Machine, arg: object) -> None:
    items = machine.pop_to_mark()
    machine.push({})
    machine.set_items(items)


def _append(machine: _Machine, arg: object) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine, arg: object) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


_INSTRUCTIONS = _instructions()


# ---------------------------------------------------------------------- the functions that torch's pickles call

_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch._tensor.Tensor")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


def _call(function: Name, args: tuple[Any, ...]) -> object:
    """What a call would have made, described."""
    name = str(function)
    if name == "collections.OrderedDict":
        return _ordered(args)
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        storage = args[0] if args else None
        dtype = storage.dtype if isinstance(storage, Storage) else None
        return _strided(args[:4], dtype, args[6] if len(args) > 6 else None)
    if name == "torch._utils._rebuild_tensor_v3" and len(args) >= 7:
        dtype = args[6].name if isinstance(args[6], Name) and args[6].module == "torch" else None
        return _strided(args[:4], dtype, args[7] if len(args) > 7 else None)
    if name in _PARAMETERS and args and isinstance(args[0], (Strided, Other)):
        return args[0]
    if name == "torch._tensor._rebuild_from_type_v2" and len(args) == 4 and str(args[1]) in _TENSOR_CLASSES:
        inner, _, inner_args, _ = args
        if isinstance(inner, Name) and inner.name != function.name and isinstance(inner_args, tuple):
            return _call(inner, inner_args)
    if name == "torch.Size" and len(args) == 1 and isinstance(args[0], tuple):
        return args[0]
    if function.module == "torch._utils" and function.name.startswith("_rebuild_"):
        return Other(function.name.removeprefix("_rebuild_").replace("_", " "))
    if name == "torch.serialization._get_layout":
        return Other("layout")
    raise Refused(f"it calls {short(name)}")


def _ordered(args: tuple[Any, ...]) -> dict[Any, Any]:
    """An ordered dictionary: empty, to be filled, or as Python 2 wrote it, from a list of pairs."""
    if not args:
        return {}
    if len(args) != 1 or not isinstance(args[0], list):
        raise Damaged("its list of tensors is damaged (a dictionary of something else than pairs)")
    pairs = args[0].copy()
    args[0].clear()  # the list is used up: a pickle cannot make work by naming it again and again
    machine = _Machine()
    machine.push({})
    machine.set_items([item for key, value in pairs for item in (key, value)])
    found: dict[Any, Any] = machine.pop()
    return found


def _strided(args: tuple[Any, ...], dtype: str | None, metadata: object) -> Strided | Other:
    storage, offset, shape, strides = args
    if not isinstance(storage, Storage) or dtype is None:
        raise Damaged("its list of tensors is damaged (a tensor without storage or dtype)")
    if not (_sizes([offset]) and _sizes(shape) and _sizes(strides) and len(shape) == len(strides) <= _MOST_AXES):
        raise Damaged(f"its list of tensors is damaged (shape {short(shape)}, strides {short(strides)})")
    if metadata:
        return Other("a conjugate or negative view")
    return Strided(storage, dtype, offset, tuple(shape), tuple(strides))


def _storage(saved: object) -> Storage:
    """The storage that ``('storage', type, key, location, count[, view])`` means."""
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
        raise Refused("it asks for something else than storages")
    kind, key, count = saved[1], saved[2], saved[4]
    if not isinstance(kind, Name) or not isinstance(key, str) or not _sizes([count]):
        raise Damaged("its list of tensors is damaged (a storage without type, name or size)")
    view = saved[5] if len(saved) == 6 else None
    root = 0
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not _sizes(view[1:]):
            raise Damaged("its list of tensors is damaged (a view of a storage)")
        root, count = view[1], view[2]
    if str(kind) in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        return Storage(key, None, count, root)
    if kind.name not in STORAGES or not kind.module.startswith("torch"):
        raise Refused(f"it asks for a storage of {short(str(kind))}")
    return Storage(key, STORAGES[kind.name], count, root)


def _sizes(values: object) -> bool:
    return isinstance(values, (tuple, list)) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST for value in values
    )
