"""Regular expressions over module names, from files and users nobody vouches for: every match takes bounded time.

Python's ``re`` backtracks, so that ``(a+)+$`` may take longer than anyone waits. Most patterns that people write cannot
do that: there ``re`` matches. All others run through an automaton that reads a name once, whatever the pattern; what
only backtracking can do (references to groups) is refused there. Both agree wherever both run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

# The tree of a pattern, as Python's own compiler sees it: private, and the same in every version since 3.11.
_parser: Any = importlib.import_module("re._parser")
_compiler: Any = importlib.import_module("re._compiler")

LONGEST_PATTERN = 20_000  # characters
LONGEST_NAME = 128  # characters of a name that `re` may see; longer ones go through the automaton
MOST_WORK = 10_000  # that the patterns of one list may have together
_INSTRUCTIONS = 2_000  # of an automaton
_CACHE = 10_000  # steps of an automaton that are remembered
_BACKTRACKING = ("GROUPREF", "GROUPREF_EXISTS", "ATOMIC_GROUP", "POSSESSIVE_REPEAT")
_ONE_CHARACTER = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


class PatternError(ValueError):
    """A text that is no regular expression, or one that isobit does not run; says why."""


class Pattern:
    """A compiled pattern; made by :func:`compiled`.

    Attributes:
        text: the pattern.
        work: about how much work one name is, for :func:`compiled_all`.
    """

    def __init__(self, text: str, *, search: bool) -> None:
        self.text, self._search = text, search
        if len(text) > LONGEST_PATTERN:
            raise PatternError(f"it has {len(text):,} characters; {LONGEST_PATTERN:,} are read")
        try:
            self._tree = _parser.parse(text)
            self._re: re.Pattern[str] = _compiler.compile(self._tree)
            choices = _choices(self._tree) + search
        except re.error as error:
            raise PatternError(f"not a regular expression: {error}") from None
        except (RecursionError, OverflowError):
            raise PatternError("not a regular expression: nested too deeply, or with endless numbers") from None
        self._cheap = choices <= 2
        self._machine: _Machine | None = None
        self.work = 1 if choices < 2 else 10
        if not self._cheap:
            self.work = 5 * len(self._automaton().program)

    def found_in(self, name: str) -> bool:
        """Whether the pattern matches at the beginning of ``name`` (or anywhere in it, where it is searched for)."""
        if self._cheap and len(name) <= LONGEST_NAME:
            return (self._re.search(name) if self._search else self._re.match(name)) is not None
        starts = range(len(name) + 1) if self._search else (0,)
        return self._automaton().matches(name, starts)

    def _automaton(self) -> _Machine:
        if self._machine is None:
            self._machine = _Machine(self._tree)
        return self._machine


@lru_cache(maxsize=16384)
def compiled(text: str, *, search: bool = False) -> Pattern:
    """The pattern of a text.

    Args:
        text: a regular expression in Python's spelling.
        search: whether it may match anywhere in a name; else at its beginning.

    Raises:
        PatternError: it is none, or one that isobit does not run.
    """
    return Pattern(text, search=search)


def compiled_all(texts: Sequence[str]) -> list[Pattern]:
    """The patterns of a list, each to match at the beginning of a name, checked to be not too much work together.

    Raises:
        PatternError: they are, or one of them is none; says which.
    """
    found: list[Pattern] = []
    work = 0 if len(texts) <= MOST_WORK else MOST_WORK + 1
    for text in texts if not work else ():
        try:
            found.append(compiled(text))
        except PatternError as error:
            raise PatternError(f"{text!r}: {error}") from None
        work += found[-1].work
        if work > MOST_WORK:
            break
    if work > MOST_WORK:
        raise PatternError(f"{len(texts):,} patterns are more than isobit looks at: write names instead")
    return found


# ---------------------------------------------------------------------- what re may be trusted with


def _choices(tree: Any) -> int:
    """How many choices follow each other in a tree: what backtracking multiplies. Many if repeats are nested."""
    found = 0
    for index, (operation, argument) in enumerate(tree):
        name = str(operation)
        if name in _REPEATS:
            low, high, body = argument
            if high == 1:
                found += _choices(body) + (1 if low == 0 else 0)
            elif not _is_fixed(body):
                return 1000
            elif low != high and not (len(body) == 1 and _ends_by_itself(body[0], tree, index + 1)):
                found += 1
        else:
            found += sum(_choices(child) for child in _children(name, argument))
            found += name == "BRANCH" and not _tells_apart(argument[1])
    return found


def _tells_apart(bodies: Any) -> bool:
    """Whether the first character says which alternative it must be."""
    firsts = [body[0] for body in bodies if len(body)]
    letters = {argument for operation, argument in firsts if str(operation) == "LITERAL"}
    return len(letters) == len(bodies)


def _children(name: str, argument: Any) -> Iterator[Any]:
    if name == "SUBPATTERN":
        yield argument[3]
    elif name == "BRANCH":
        yield from argument[1]
    elif name in ("ASSERT", "ASSERT_NOT"):
        yield argument[1]
    elif name == "ATOMIC_GROUP":
        yield argument
    elif name == "GROUPREF_EXISTS":
        yield from (part for part in argument[1:] if part is not None)


def _is_fixed(tree: Any) -> bool:
    """Whether a tree can match one way only: characters in a row, alternatives of one character each."""
    for operation, argument in tree:
        name = str(operation)
        if name == "SUBPATTERN" and _is_fixed(argument[3]):
            continue
        if name not in _ONE_CHARACTER and name != "AT":
            return False
    return True


def _ends_by_itself(node: Any, tree: Any, after: int) -> bool:
    """Whether a repeated character is followed by a literal that it is not, so that there is one place to stop at."""
    if after >= len(tree) or str(tree[after][0]) != "LITERAL" or str(node[0]) not in _ONE_CHARACTER:
        return False
    return _single(node, tree.state, tree.state.flags).fullmatch(chr(tree[after][1])) is None


def _single(node: Any, state: Any, flags: int) -> re.Pattern[str]:
    """One node of a tree as a pattern of its own."""
    found: re.Pattern[str] = _compiler.compile(_parser.SubPattern(state, [node]), flags)
    return found


# ---------------------------------------------------------------------- the automaton


class _Machine:
    """A pattern as a program whose threads read a name together, each instruction at most once a character.

    Instructions are (what, argument): ``char`` and a pattern of one character; ``at`` and a pattern of no character;
    ``look`` and (machine, wanted, characters back); ``split`` and two places to go on; ``match``.
    """

    def __init__(self, tree: Any, flags: int | None = None) -> None:
        self.state = tree.state
        self.program: list[tuple[str, Any]] = []
        self.timeless = True  # what it does depends on the characters alone, not on where they stand
        self._sequence(tree, self.state.flags if flags is None else flags)
        self._add("match", None)
        self._steps: dict[tuple[frozenset[int], str], tuple[frozenset[int], bool]] = {}

    def matches(self, name: str, starts: Iterable[int]) -> bool:
        """Whether a match begins at one of these places, which ascend."""
        return self._run(name, starts, {})

    def _run(self, name: str, starts: Iterable[int], seen: dict[tuple[int, int], bool]) -> bool:
        begins = set(starts)
        threads: frozenset[int] = frozenset()
        for place in range(min(begins, default=0), len(name) + 1):
            if place in begins:
                threads |= {0}
            elif not threads:
                break
            ready, done = self._follow(threads, name, place, seen)
            if done:
                return True
            if place < len(name):
                threads = self._read(ready, name[place])
        return False

    def _follow(
        self, threads: frozenset[int], name: str, place: int, seen: dict[tuple[int, int], bool]
    ) -> tuple[frozenset[int], bool]:
        """The instructions that wait for a character, and whether a thread has arrived."""
        key = (threads, "")
        if self.timeless and key in self._steps:
            return self._steps[key]
        ready, visited, left = set(), set(threads), list(threads)
        while left:
            at = left.pop()
            what, argument = self.program[at]
            if what == "match":
                return self._remember(key, (frozenset(), True))
            if what == "char":
                ready.add(at)
                continue
            if what == "split":
                onward = argument
            else:
                holds = argument.match(name, place) is not None if what == "at" else _looks(argument, name, place, seen)
                onward = (at + 1,) if holds else ()
            for goal in onward:
                if goal not in visited:
                    visited.add(goal)
                    left.append(goal)
        return self._remember(key, (frozenset(ready), False))

    def _read(self, ready: frozenset[int], letter: str) -> frozenset[int]:
        key = (ready, letter)
        if key in self._steps:
            return self._steps[key][0]
        onward = frozenset(at + 1 for at in ready if self.program[at][1].fullmatch(letter) is not None)
        return self._remember(key, (onward, False), always=True)[0]

    def _remember(
        self, key: tuple[frozenset[int], str], value: tuple[frozenset[int], bool], always: bool = False
    ) -> tuple[frozenset[int], bool]:
        if self.timeless or always:
            if len(self._steps) >= _CACHE:
                self._steps.clear()
            self._steps[key] = value
        return value

    # ------------------------------------------------------------------ a tree as a program

    def _add(self, what: str, argument: Any) -> int:
        if len(self.program) >= _INSTRUCTIONS:
            raise PatternError("it is too large where its repeats are written out: write it more simply")
        self.program.append((what, argument))
        return len(self.program) - 1

    def _sequence(self, tree: Any, flags: int) -> None:
        for operation, argument in tree:
            name = str(operation)
            if name in _BACKTRACKING:
                raise PatternError("repeats together with references to groups may take forever: write it more simply")
            if name in _ONE_CHARACTER:
                self._add("char", _single((operation, argument), self.state, flags))
            elif name == "AT":
                self.timeless = False
                self._add("at", _single((operation, argument), self.state, flags))
            elif name in ("ASSERT", "ASSERT_NOT"):
                self.timeless = False
                direction, body = argument
                back = body.getwidth()[0] if direction < 0 else 0
                self._add("look", (_Machine(body, flags), name == "ASSERT", back))
            elif name == "SUBPATTERN":
                _, added, removed, body = argument
                self._sequence(body, (flags | added) & ~removed)
            elif name == "BRANCH":
                self._branch(argument[1], flags)
            elif name in _REPEATS:
                low, high, body = argument
                self._repeat(low, high, body, flags)
            elif name == "FAILURE":
                self._add("split", ())
            else:
                raise PatternError(f"isobit does not run {name.lower()} beside many repeats: write it more simply")

    def _branch(self, bodies: Any, flags: int) -> None:
        ends = []
        for body in bodies[:-1]:
            fork = self._add("split", ())
            self._sequence(body, flags)
            ends.append(self._add("split", ()))
            self.program[fork] = ("split", (fork + 1, len(self.program)))
        self._sequence(bodies[-1], flags)
        for end in ends:
            self.program[end] = ("split", (len(self.program),))

    def _repeat(self, low: int, high: Any, body: Any, flags: int) -> None:
        for _ in range(low):
            self._sequence(body, flags)
        if high == _parser.MAXREPEAT:
            fork = self._add("split", ())
            self._sequence(body, flags)
            self._add("split", (fork,))
            self.program[fork] = ("split", (fork + 1, len(self.program)))
            return
        forks = []
        for _ in range(high - low):
            forks.append(self._add("split", ()))
            self._sequence(body, flags)
        for fork in forks:
            self.program[fork] = ("split", (fork + 1, len(self.program)))


def _looks(argument: Any, name: str, place: int, seen: dict[tuple[int, int], bool]) -> bool:
    """Whether a look ahead or back holds; ``seen`` has the answers for this name so far."""
    machine: _Machine
    machine, wanted, back = argument
    key = (id(machine), place)
    if key not in seen:
        seen[key] = place >= back and machine._run(name, (place - back,), seen)
    return seen[key] is bool(wanted)
