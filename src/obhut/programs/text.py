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
from collections.abc import Callable, Mapping

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
    Optimizer,
    Program,
    Result,
    Share,
    Size,
)

_HEADING = f"obhut program {VERSION}"
_LEAST = "batches of {} rows or more"

# --- writing ----------------------------------------------------------------------


def write(program: Program) -> str:
    """Return a program's text."""
    names = {id: f"%{one.name}" for id, one in enumerate(program.inputs, 1)}
    first = len(program.inputs) + 1
    results = (
        i for line in program.lines for i in range(line.out, line.out + line.count)
    )
    names |= {id: f"%{id - first}" for id in results}
    written = [_HEADING] + [_LEAST.format(program.least)] * (program.least > 1)
    for id, one in enumerate(program.inputs, 1):
        sizes = ", ".join(map(_number, one.shape))
        written.append(f"{one.kind} {names[id]}: {one.dtype}[{sizes}]")
    for place, optimizer in enumerate(program.optimizers):
        groups = " ".join(
            f"[{', '.join(names[id] for id in group)}]" for group in optimizer.groups
        )
        written.append(f"optimizer {place}: {optimizer.kind} {groups}")
    for line in program.lines:
        outs = [names[id] for id in range(line.out, line.out + line.count)]
        given = [_argument(value, names) for value in line.args]
        given += [f"{name}={_argument(value, names)}" for name, value in line.kwargs]
        makes = f"{', '.join(outs)} = " if outs else ""
        unrecorded = "" if line.grad else " no_grad"
        written.append(f"{makes}{line.name}({', '.join(given)}){unrecorded}")
    for result in program.results:
        named = f" {result.name}:" if result.name else ""
        below = _argument(result.denominator, names)
        written.append(f"return{named} {names[result.numerator.id]} / {below}")
    return "\n".join(written) + "\n"


def digest(text: str) -> str:
    """Return a text's SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _number(size: int | Size) -> str:
    if not isinstance(size, Size):
        return str(size)
    rows = "$B" if size.per_row == 1 else f"{size.per_row}*$B"
    rows = f"{rows}{size.fixed:+d}" if size.fixed else rows
    return rows if size.divisor == 1 else f"{rows}//{size.divisor}"


def _argument(value: Argument, names: Mapping[int, str]) -> str:
    match value:
        case list():
            return f"[{', '.join(_argument(one, names) for one in value)}]"
        case None | bool():
            return str(value)
        case int() | Size():
            return _number(value)
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
_RESULT = re.compile(rf"return(?: (\w+):)? ({_NAME}) / (\S+)")
_TOKEN = re.compile(
    rf"""(?P<ref>{_NAME})
    |(?P<tensor>tensor\ \w+\[[\d, ]*\]\ (?:[0-9a-f]{{2}})*)
    |(?P<complex>complex\ \S+\ [^\s,\]]+)
    |(?P<float>-?0x[0-9a-f.]+p[+-]\d+(?:/\$B)?|float\ -?(?:inf|nan))
    |(?P<size>(?:-?\d+\*)?\$B(?:[+-]\d+)?(?://\d+)?)
    |(?P<int>-?\d+)
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<word>[A-Za-z_]\w*)""",
    re.VERBOSE,
)
_SIZE = re.compile(r"(?:(-?\d+)\*)?\$B([+-]\d+)?(?://(\d+))?")
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
    program = Program(
        tuple(reader.inputs),
        tuple(reader.optimizers),
        tuple(reader.lines),
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
        self.lines: list[Line] = []
        self.results: list[Result] = []
        self.least = 1
        self._ids: dict[str, int] = {}

    def take(self, line: str) -> None:
        """Take one line in.

        Raises:
            ValueError: if it is none.
            KeyError: if it names something that is not there yet.
        """
        if found := _RESULT.fullmatch(line):
            below = _whole(found[3], self._ids)
            if isinstance(below, bool) or not isinstance(
                below, Ref | Size | int | float
            ):
                raise ValueError("a denominator is a tensor or a number")
            self.results.append(Result(found[1] or "", Ref(self._ids[found[2]]), below))
        elif (found := _AT_LEAST.fullmatch(line)) and not self._ids:
            self.least = int(found[1])
        elif self.results:
            raise ValueError("something follows what is returned")
        elif found := _INPUT.fullmatch(line):
            if self.optimizers or self.lines:
                raise ValueError("an input comes late")
            sizes = [_size(one) for one in _split(found[4])]
            kind = Kind(found[1])
            self.inputs.append(Input(found[2][1:], kind, found[3], tuple(sizes)))
            self._name(found[2])
        elif found := _OPTIMIZER.fullmatch(line):
            if self.lines or int(found[1]) != len(self.optimizers):
                raise ValueError("an optimizer comes late")
            groups = re.findall(r"\[([^\[\]]*)\]", found[3])
            ids = (tuple(self._ids[one] for one in _split(group)) for group in groups)
            self.optimizers.append(Optimizer(found[2], tuple(ids)))
        elif found := _LINE.fullmatch(line):
            args, kwargs = _arguments(found[3], self._ids)
            outs = _split(found[1] or "")
            first = self._name(*outs) if outs else 0
            self.lines.append(
                Line(found[2], args, kwargs, first, len(outs), not found[4])
            )
        else:
            raise ValueError("it has no known form")

    def _name(self, *names: str) -> int:
        """Give names the next ids; return the first."""
        first = len(self._ids) + 1
        for name in names:
            if name in self._ids:
                raise ValueError(f"{name} is there already")
            self._ids[name] = len(self._ids) + 1
        return first


def _split(text: str) -> list[str]:
    return text.split(", ") if text else []


def _size(text: str) -> int | Size:
    found = _SIZE.fullmatch(text)
    if found is None:
        return int(text)
    return Size(int(found[1] or 1), int(found[2] or 0), int(found[3] or 1))


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
    "size": lambda text, ids: _size(text),
    "int": lambda text, ids: int(text),
    "text": lambda text, ids: str(json.loads(text)),
    "word": _read_word,
}
"""Makes a value of a token, by the token's kind."""
