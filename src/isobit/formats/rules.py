"""Which module gets which scheme: a default, and rules for single modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isobit.errors import SchemeError
from isobit.formats.patterns import PatternError, compiled
from isobit.formats.schemes import Scheme, scheme

# ``absorbed``: a matrix that attention multiplies queries and results by, in high precision, however it is stored.
# ``vector``: numbers of neither a linear nor a norm, e.g. the sinks of an attention.
ModuleKind = Literal["linear", "absorbed", "lm_head", "embedding", "router", "norm", "vector", "other"]

KEEP = "keep"

# Kinds that a rule can quantize. Norms and all the rest hold vectors, not matrices: no rule reaches them.
QUANTIZABLE_KINDS: tuple[ModuleKind, ...] = ("linear", "absorbed", "lm_head", "embedding", "router")


@dataclass(frozen=True)
class Rule:
    """One exception: modules whose name matches ``pattern`` get ``action``.

    Attributes:
        pattern: a regular expression, found anywhere in the module name (``re.search``); anchor it with ``^`` and
            ``$`` to match the whole name.
        action: a scheme name, or ``keep`` to leave the module as it is.

    Raises:
        SchemeError: the pattern is no regular expression or takes forever, or the action no scheme.
    """

    pattern: str
    action: str

    def __post_init__(self) -> None:
        try:
            compiled(self.pattern, search=True)
        except PatternError as error:
            raise SchemeError(f"rule pattern {self.pattern!r}: {error}") from None
        if self.action.lower() != KEEP:
            scheme(self.action)

    @property
    def scheme(self) -> Scheme | None:
        """The scheme of this rule; None for ``keep``."""
        return None if self.action.lower() == KEEP else scheme(self.action)

    def matches(self, module: str) -> bool:
        """Whether this rule is about ``module``, e.g. ``model.layers.0.mlp.down_proj``."""
        return compiled(self.pattern, search=True).found_in(module)


def parse_rule(text: str) -> Rule:
    """A rule written as ``PATTERN=ACTION``, for example ``lm_head=int8`` or ``layers\\.0\\.=keep``.

    Raises:
        SchemeError: it is not of this form, or names no scheme.
    """
    pattern, separator, action = text.rpartition("=")
    if not separator or not pattern or not action:
        raise SchemeError(f"rule {text!r}: write PATTERN=SCHEME or PATTERN=keep, for example lm_head=int8")
    return Rule(pattern, action.strip())


@dataclass(frozen=True)
class Policy:
    """A default scheme for linear layers, and rules that override it; the first rule that matches wins.

    Without a rule, only ``linear`` modules are quantized: lm_head, embeddings, routers and matrices that latent
    attention absorbs are kept.
    """

    default: Scheme
    rules: tuple[Rule, ...] = ()

    def scheme_for(self, module: str, kind: ModuleKind) -> Scheme | None:
        """The scheme of ``module``, or None when it is kept as it is."""
        if kind not in QUANTIZABLE_KINDS:
            return None
        for rule in self.rules:
            if rule.matches(module):
                return rule.scheme
        return self.default if kind == "linear" else None
