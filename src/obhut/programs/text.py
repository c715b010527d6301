"""A program's text: written in one form, and read back.

::

    obhut program 1
    parameter %weight: float32[1, 2]
    parameter %bias: float32[1]
    rows %x: float32[$B, 2]
    rows %y: float32[$B, 1]
    optimizer 0: SGD [%weight, %bias]
    %0 = aten.linear.default(%x, %weight, %bias)
    %1 = aten.sub.Tensor(%0, %y)
    %2 = aten.pow.Tensor_Scalar(%1, 2)
    %3 = aten.sum.default(%2)
    set_grad(%weight, None)
    set_grad(%bias, None)
    backward([%3], [None], None, False, False)
    step(0)
    return %3 / $B

A whole training has loops, and rows only inside of them::

    batches 32 shuffle epochs 5:
      first:
        %0 = aten.sum.default(%x)
      carry %1 = %0
      then:
        %2 = aten.sum.default(%x)
        %3 = aten.add.Tensor(%1, %2)
        next %1 = %3
    return %1 / 5*$N0

Rules:

- One program has one text: whoever reads a text writes it again, and both are equal, so
  that a digest stands for what is run and not for how it is written.
- Floats are hexadecimal, names are plain, nothing is looked up while it is read.
- A text is bounded before it is read, line by line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping

from obhut.errors import ProgramError
from obhut.protocol import limits
from obhut.protocol.messages import Complex, Here, Inline, Ref, Symbol

from .program import (
    VERSION,
    Argument,
    Atom,
    Input,
    Kind,
    Line,
    Loop,
    Optimizer,
    Part,
    Program,
    Result,
    Share,
    Size,
    Tally,
)

_HEADING = f"obhut program {VERSION}"
_LEAST = "batches of {} rows or more"

# --- writing ----------------------------------------------------------------------


def write(program: Program) -> str:
    """Return a program's text."""
    names = {id: f"%{one.name}" for id, one in enumerate(program.inputs, 1)}
    first = len(program.inputs) + 1
    made = [id for line in program.lines for id in line.makes]
    made += [id for loop in program.loops for id, _ in loop.carried]
    names |= {id: f"%{id - first}" for id in made}
    written = [_HEADING] + [_LEAST.format(program.least)] * (program.least > 1)
    for id, one in enumerate(program.inputs, 1):
        sizes = ", ".join(map(_number, one.shape))
        written.append(f"{one.kind} {names[id]}: {one.dtype}[{sizes}]")
    for place, optimizer in enumerate(program.optimizers):
        groups = " ".join(
            f"[{', '.join(names[id] for id in group)}]" for group in optimizer.groups
        )
        written.append(f"optimizer {place}: {optimizer.kind} {groups}")
    for block in program.blocks:
        if isinstance(block, Loop):
            written += _loop(block, names)
        else:
            written.append(_line(block, names))
    for result in program.results:
        named = f" {result.name}:" if result.name else ""
        below = _argument(result.denominator, names)
        written.append(f"return{named} {names[result.numerator.id]} / {below}")
    return "\n".join(written) + "\n"


def _loop(loop: Loop, names: Mapping[int, str]) -> Iterator[str]:
    how = f"batches {loop.size or 'all'}"
    how += " shuffle" * loop.shuffle + " drop_last" * loop.drop_last
    yield how + f" epochs {loop.epochs}:"
    if loop.first:
        yield "  first:"
        yield from (f"    {_line(line, names)}" for line in loop.first)
    for id, initial in loop.carried:
        yield f"  carry {names[id]} = {'None' if initial is None else names[initial]}"
    for part in loop.parts:
        yield "  then:"
        yield from (f"    {_line(line, names)}" for line in part.lines)
        yield from (f"    next {names[id]} = {names[v]}" for id, v in part.carried)


def _line(line: Line, names: Mapping[int, str]) -> str:
    given = [_argument(value, names) for value in line.args]
    given += [f"{name}={_argument(value, names)}" for name, value in line.kwargs]
    makes = f"{', '.join(names[id] for id in line.makes)} = " if line.count else ""
    unrecorded = "" if line.grad else " no_grad"
    return f"{makes}{line.name}({', '.join(given)}){unrecorded}"


def digest(text: str) -> str:
    """Return a text's SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _number(size: int | Size) -> str:
    if not isinstance(size, Size):
        return str(size)
    rows = "$B" if size.per_row == 1 else f"{size.per_row}*$B"
    rows = f"{rows}{size.fixed:+d}" if size.fixed else rows
    return rows if size.divisor == 1 else f"{rows}//{size.divisor}"


def _tally(tally: Tally) -> str:
    terms = [f"{factor:+d}*${name}" for factor, name in tally.terms]
    fixed = f"{tally.fixed:+d}" if tally.fixed else ""
    return "".join(terms).removeprefix("+") + fixed


def _argument(value: Argument, names: Mapping[int, str]) -> str:
    match value:
        case list():
            return f"[{', '.join(_argument(one, names) for one in value)}]"
        case None | bool():
            return str(value)
        case int() | Size():
            return _number(value)
        case Tally():
            return _tally(value)
        case float():
            return _float(value)
        case Share(numerator=above):
            return f"{_float(above)}/$B"
        case str():
            return json.dumps(value)
        case Ref(id=id):
            return names[id]
        case Symbol(name=name):
            return name
        case Here():
            return "here"
        case Complex(real=real, imag=imag):
            return f"complex {_float(real)} {_float(imag)}"
        case Inline(dtype=dtype, shape=shape, data=data):
            sizes = ", ".join(map(str, shape))
            return f"tensor {dtype}[{sizes}] {data.hex()}"


def _float(value: float) -> str:
    return value.hex() if math.isfinite(value) else f"float {value}"


# --- reading ----------------------------------------------------------------------

_NAME = r"%(?:[A-Za-z_][\w.]*|\d+)"
_INPUT = re.compile(rf"(parameter|constant|rows) ({_NAME}): (\w+)\[([^\[\]]*)\]")
_AT_LEAST = re.compile(_LEAST.format(r"(\d+)"))
_OPTIMIZER = re.compile(r"optimizer (\d+): ([A-Za-z]+)((?: \[[^\[\]]*\])+)")
_LINE = re.compile(
    rf"(?:({_NAME}(?:, {_NAME})*) = )?([a-z_]\w*(?:\.\w+\.\w+)?)\((.*)\)( no_grad)?"
)
_LOOP = re.compile(r"batches (\d+|all)( shuffle)?( drop_last)? epochs (\d+):")
_CARRY = re.compile(rf"carry ({_NAME}) = ({_NAME}|None)")
_NEXT = re.compile(rf"next ({_NAME}) = ({_NAME})")
_RESULT = re.compile(rf"return(?: (\w+):)? ({_NAME}) / (\S+)")
_TOKEN = re.compile(
    rf"""(?P<ref>{_NAME})
    |(?P<tensor>tensor\ \w+\[[\d, ]*\]\ (?:[0-9a-f]{{2}})*)
    |(?P<complex>complex\ \S+\ [^\s,\]]+)
    |(?P<float>-?0x[0-9a-f.]+p[+-]\d+(?:/\$B)?|float\ -?(?:inf|nan))
    |(?P<tally>-?\d+\*\$[NK]\d+(?:[+-]\d+\*\$[NK]\d+)*(?:[+-]\d+)?)
    |(?P<size>(?:-?\d+\*)?\$B(?:[+-]\d+)?(?://\d+)?)
    |(?P<int>-?\d+)
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<word>[A-Za-z_]\w*)""",
    re.VERBOSE,
)
_SIZE = re.compile(r"(?:(-?\d+)\*)?\$B([+-]\d+)?(?://(\d+))?")
_TERM = re.compile(r"([+-]?\d+)\*\$([NK]\d+)")
_KEYWORD = re.compile(r"([A-Za-z_]\w*)=")


def read(text: str) -> Program:
    """Return the program that a text is of.

    Raises:
        ProgramError: if it is too long, of another version, or not written as
            ``write`` would.
    """
    if len(text) > limits.PROGRAM_CHARACTERS:
        raise ProgramError(
            f"a program has at most {limits.PROGRAM_CHARACTERS:,} characters, this one "
            f"{len(text):,}"
        )
    heading, _, rest = text.partition("\n")
    if heading != _HEADING:
        raise ProgramError(
            f"expected {_HEADING!r} on the first line, got {heading[:80]!r}; use the "
            "same version of obhut"
        )
    reader = _Reader()
    for number, line in enumerate(rest.split("\n")[:-1], 2):
        try:
            reader.take(line)
        except (ValueError, KeyError, OverflowError) as error:
            raise ProgramError(f"line {number} is not a program's: {error}") from None
    reader.end()
    program = Program(
        tuple(reader.inputs),
        tuple(reader.optimizers),
        tuple(reader.blocks),
        tuple(reader.results),
        reader.least,
    )
    if write(program) != text:
        raise ProgramError("the text is not written as a program's is")
    return program


class _Reader:
    """Takes a text's lines in, in order.

    Attributes:
        inputs: what was read, likewise the others.
    """

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.optimizers: list[Optimizer] = []
        self.blocks: list[Line | Loop] = []
        self.results: list[Result] = []
        self.least = 1
        self._ids: dict[str, int] = {}
        self._open: _OpenLoop | None = None

    def take(self, line: str) -> None:
        """Take one line in.

        Raises:
            ValueError: if it is none.
            KeyError: if it names something that is not there yet.
        """
        if line.startswith("  ") and self._open is not None:
            self._open.take(line[2:])
            return
        self.end()
        if found := _RESULT.fullmatch(line):
            below = _whole(found[3], self._ids)
            if isinstance(below, bool) or not isinstance(
                below, Ref | Size | Tally | int | float
            ):
                raise ValueError("a denominator is a tensor or a number")
            self.results.append(Result(found[1] or "", Ref(self._ids[found[2]]), below))
        elif (found := _AT_LEAST.fullmatch(line)) and not self._ids:
            self.least = int(found[1])
        elif self.results:
            raise ValueError("something follows what is returned")
        elif found := _INPUT.fullmatch(line):
            if self.optimizers or self.blocks:
                raise ValueError("an input comes late")
            sizes = [_size(one) for one in _split(found[4])]
            kind = Kind(found[1])
            self.inputs.append(Input(found[2][1:], kind, found[3], tuple(sizes)))
            self.name(found[2])
        elif found := _OPTIMIZER.fullmatch(line):
            if self.blocks or int(found[1]) != len(self.optimizers):
                raise ValueError("an optimizer comes late")
            groups = re.findall(r"\[([^\[\]]*)\]", found[3])
            ids = (tuple(self._ids[one] for one in _split(group)) for group in groups)
            self.optimizers.append(Optimizer(found[2], tuple(ids)))
        elif found := _LOOP.fullmatch(line):
            size = 0 if found[1] == "all" else int(found[1])
            if found[1] == "0":
                raise ValueError("a batch has one row or more")
            how = (size, bool(found[2]), bool(found[3]), int(found[4]))
            self._open = _OpenLoop(self, how)
        else:
            self.blocks.append(self.line(line))

    def end(self) -> None:
        """Let the loop end, if there is one."""
        if self._open is not None:
            self.blocks.append(self._open.close())
            self._open = None

    def id(self, name: str) -> int:
        """Return the id of a name.

        Raises:
            KeyError: if there is none yet.
        """
        return self._ids[name]

    def line(self, line: str) -> Line:
        """Return a line that is none of a loop's own.

        Raises:
            ValueError, KeyError: as for ``take``.
        """
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError("it has no known form")
        args, kwargs = _arguments(found[3], self._ids)
        outs = _split(found[1] or "")
        first = self.name(*outs) if outs else 0
        return Line(found[2], args, kwargs, first, len(outs), not found[4])

    def name(self, *names: str) -> int:
        """Give names the next ids; return the first."""
        first = len(self._ids) + 1
        for name in names:
            if name in self._ids:
                raise ValueError(f"{name} is there already")
            self._ids[name] = len(self._ids) + 1
        return first


class _OpenLoop:
    """A loop whose lines are taken in, in order."""

    def __init__(self, reader: _Reader, how: tuple[int, bool, bool, int]) -> None:
        self._reader = reader
        self._how = how
        self._first: list[Line] = []
        self._carried: list[tuple[int, int | None]] = []
        self._parts: list[tuple[list[Line], list[tuple[int, int]]]] = []
        self._is_first = False

    def take(self, line: str) -> None:
        """Take one line in, less its first two spaces.

        Raises:
            ValueError, KeyError: as for the reader's.
        """
        reader = self._reader
        if not line.startswith("  "):
            self._take_own(line)
        elif self._parts:
            lines, carried = self._parts[-1]
            if found := _NEXT.fullmatch(line[2:]):
                carried.append((reader.id(found[1]), reader.id(found[2])))
            else:
                lines.append(reader.line(line[2:]))
        elif self._is_first:
            self._first.append(reader.line(line[2:]))
        else:
            raise ValueError("it belongs to no part of a loop")

    def _take_own(self, line: str) -> None:
        if line == "then:":
            self._parts.append(([], []))
        elif line == "first:":
            self._is_first = True
        elif found := _CARRY.fullmatch(line):
            initial = None if found[2] == "None" else self._reader.id(found[2])
            self._carried.append((self._reader.name(found[1]), initial))
        else:
            raise ValueError("no loop has such a part")

    def close(self) -> Loop:
        """Return the loop. Lines that stood elsewhere are written elsewhere again."""
        parts = tuple(Part(tuple(lines), tuple(more)) for lines, more in self._parts)
        return Loop(*self._how, tuple(self._first), tuple(self._carried), parts)


def _split(text: str) -> list[str]:
    return text.split(", ") if text else []


def _size(text: str) -> int | Size:
    found = _SIZE.fullmatch(text)
    if found is None:
        return int(text)
    return Size(int(found[1] or 1), int(found[2] or 0), int(found[3] or 1))


def _to_tally(text: str) -> Tally:
    terms = tuple((int(one[1]), one[2]) for one in _TERM.finditer(text))
    return Tally(terms, int(_TERM.sub("", text) or 0))


def _whole(text: str, ids: Mapping[str, int]) -> Argument:
    """Return the one argument that a text is."""
    value, end = _argument_at(text, 0, ids)
    if end != len(text):
        raise ValueError("expected one value")
    return value


def _arguments(
    text: str, ids: Mapping[str, int]
) -> tuple[tuple[Argument, ...], tuple[tuple[str, Argument], ...]]:
    args: list[Argument] = []
    kwargs: list[tuple[str, Argument]] = []
    place = 0
    while place < len(text):
        if args or kwargs:
            if not text.startswith(", ", place):
                raise ValueError("expected a comma")
            place += 2
        keyword = _KEYWORD.match(text, place)
        value, place = _argument_at(text, keyword.end() if keyword else place, ids)
        if keyword:
            kwargs.append((keyword[1], value))
        else:
            args.append(value)
    return tuple(args), tuple(kwargs)


def _argument_at(text: str, place: int, ids: Mapping[str, int]) -> tuple[Argument, int]:
    if not text.startswith("[", place):
        return _atom_at(text, place, ids)
    atoms: list[Atom] = []
    place += 1
    while not text.startswith("]", place):
        if atoms:
            if not text.startswith(", ", place):
                raise ValueError("expected a comma")
            place += 2
        atom, place = _atom_at(text, place, ids)
        atoms.append(atom)
    return atoms, place + 1


def _atom_at(text: str, place: int, ids: Mapping[str, int]) -> tuple[Atom, int]:
    found = _TOKEN.match(text, place)
    if found is None or found.lastgroup is None:
        raise ValueError(f"nothing is written as {text[place : place + 40]!r}")
    return _READ[found.lastgroup](found[0], ids), found.end()


def _read_float(text: str, ids: object) -> Atom:
    if text.endswith("/$B"):
        return Share(float.fromhex(text.removesuffix("/$B")))
    return _to_float(text)


def _to_float(text: str) -> float:
    return float(text[6:]) if text.startswith("float ") else float.fromhex(text)


def _read_complex(text: str, ids: object) -> Atom:
    _, real, imag = text.split(" ")
    return Complex(_to_float(real), _to_float(imag))


def _read_tensor(text: str, ids: object) -> Atom:
    _, dtype, rest = re.split(r" |(?<=\w)(?=\[)", text, maxsplit=2)
    sizes, data = rest[1:].rsplit("] ", 1)
    return Inline(dtype, tuple(map(int, _split(sizes))), bytes.fromhex(data))


_CONSTANTS: Mapping[str, Atom] = {
    "None": None,
    "True": True,
    "False": False,
    "here": Here(),
}


def _read_word(text: str, ids: object) -> Atom:
    return _CONSTANTS[text] if text in _CONSTANTS else Symbol(text)


_READ: Mapping[str, Callable[[str, Mapping[str, int]], Atom]] = {
    "ref": lambda text, ids: Ref(ids[text]),
    "tensor": _read_tensor,
    "complex": _read_complex,
    "float": _read_float,
    "tally": lambda text, ids: _to_tally(text),
    "size": lambda text, ids: _size(text),
    "int": lambda text, ids: int(text),
    "text": lambda text, ids: str(json.loads(text)),
    "word": _read_word,
}
"""Makes a value of a token, by the token's kind."""
