"""What a layout is: a way to store the weight of one linear (or embedding) in tensors of a checkpoint. No torch here.

A layout claims the tensors of a module, describes them from their headers and the configuration, and reads them. Its
file may import torch only within the functions that read: plans and descriptions of models need none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.layouts.needs import Needs
from isobit.checkpoint.layouts.parts import COMMON, Described, Parts
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.shards import PlannedTensor
from isobit.formats.schemes import ActSpec, WeightSpec

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader


@dataclass(frozen=True)
class Layout:
    """One way to store a weight.

    Attributes:
        name: for people.
        codes: the part that holds the codes, or the plain numbers.
        parts: what may belong to the weight besides, and to no other layout's only.
        claims: whether the tensors of a module, by part, are stored in this way.
        describes: what they hold.
        reads: reads them; None for a layout that isobit describes and refuses.
        dtypes: safetensors dtypes that the codes can have; empty where reading says so.
        scales: the parts that hold scales.
        marks: parts whose presence alone says that a weight is quantized.
        configs: what ``quant_method`` may say -> what reads that section of ``config.json``.
        written: the tensors that hold a weight ``[N, K]`` of a spec, for inputs rounded in a way (or not), with scales
            of a dtype; or None if other layouts do. None for layouts that isobit does not write.
        dot: whether a dot stands between a module's name and these parts.
        private: more parts, whose names mean this only beside its codes.
        needs: of a module's tensors that hold a weight ``[N, K]``, each that belongs to it; nothing where the
            configuration does not say enough, and reading will tell.
        methods: what quant_method and format say of these tensors, where others of the same names are of other methods.
        surplus: what is said of a tensor that belongs to another layout; empty where the configuration decides.
        implies: of tensors' names with their dtypes, the section of ``config.json`` that they stand for where there is
            none: of tools that write none.
    """

    name: str
    codes: str
    parts: tuple[str, ...]
    claims: Callable[[Mapping[str, TensorInfo]], bool]
    describes: Callable[[Parts], Described]
    reads: Callable[[Reader], LinearWeight] | None = None
    dtypes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    configs: Mapping[str, Callable[[dict[str, Any]], Quantization]] = field(default_factory=dict)
    written: Callable[[WeightSpec, ActSpec | None, int, int, str], tuple[PlannedTensor, ...] | None] | None = None
    dot: bool = True
    private: tuple[str, ...] = ()
    needs: Callable[[Parts, int, int], Needs] | None = None
    methods: tuple[str, ...] = ()
    surplus: str = ""
    implies: Callable[[Mapping[str, str]], dict[str, Any] | None] | None = None

    def owned(self, infos: Mapping[str, TensorInfo]) -> tuple[TensorInfo, ...]:
        """The tensors of a module that hold its weight and what belongs to that, without a bias."""
        return tuple(infos[part] for part in (self.codes, *self.parts, *self.private, *COMMON[:-1]) if part in infos)

    def describe(self, parts: Parts) -> tuple[Described, int]:
        """What a module's tensors hold, and the bytes that takes."""
        return self.describes(parts), sum(info.nbytes for info in self.owned(parts.infos))
