"""Cells as numbers: of text as it is written, or of Arrow's types.

::

    cells = NumberCells("age", "float32", marks)
    values, missing = cells.read(arrow_array)       # of one column, block by block

Rules:

- A number is written in ASCII digits, with a sign, a decimal mark and an exponent if
  need be; spaces around it are passed over. A first digit 0 before another is refused:
  it is a name then, such as a postal code.
- A column is one of numbers, or one of words (yes, no, true, false, beside 0 and 1),
  as its first cell says: a "no" among numbers is not a 0.
- A whole number in digits is exact, also above 2**53, or is said not to be.
- pyarrow reads a block at once. The cell at fault is looked for after it has failed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from obhut.host.wording import quote, toml_key

from .arrow import pa, pc
from .numbers import Elements, MisfitError, misfit, unfit
from .source import Arrow
from .words import WORDS, Mask, is_text, missing_mask, values_of

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?$"

_ZEROS = r"^[+-]?0[0-9]"

_PLAIN = r"^[+-]?[0-9]+$"

_EXACT = 2.0**53
"""From here on a float64 may not be the whole number that was written."""

_BOOLEANS = {**WORDS, "0": 0, "1": 1}

_BEHIND_ZERO = np.zeros(256, np.bool_)
_BEHIND_ZERO[list(b"0123456789xX")] = True
"""What makes a first 0 one that is not to be lost, or a number of another base."""


class TextError(MisfitError):
    """A cell of text is no number. What to do depends on the rest of the column."""


GROUPS = {" ": " \u00a0\u202f", "'": "'\u2019"}
"""What groups digits where a space or an apostrophe does: spreadsheets print others."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How numbers and missing values of a data set are written.

    Attributes:
        decimal: the decimal mark.
        thousands: what groups digits; empty for nothing.
        missing: further texts without a value.
        missing_numbers: numbers that stand for no value.
        zeros: whether a number may begin with 0 before other digits.
    """

    decimal: str = "."
    thousands: str = ""
    missing: frozenset[str] = frozenset()
    missing_numbers: tuple[float, ...] = ()
    zeros: bool = False


class NumberCells:
    """Reads the cells of one column, block by block.

    Attributes:
        inexact: whether the whole number at ``inexact_at`` of the last block is not
            exact as a float64; -1 for none.
    """

    def __init__(self, name: str, dtype: str, marks: Marks) -> None:
        self._name = name
        self._dtype = dtype
        self._is_float = "float" in dtype
        self._kind = np.float64 if self._is_float else np.int64
        self._marks = marks
        self._is_word: bool | None = None
        self.inexact_at = -1

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return a block's numbers, and which cells have none.

        Args:
            cells: an Arrow array.

        Returns:
            (rows,) float64, or float32 where Arrow has that, for a dtype of floats;
            else int64. What stands where a value is missing is arbitrary.

        Raises:
            MisfitError: at a cell that is no number.
        """
        self.inexact_at = -1
        kind = values_of(cells.type)
        cells = cells.cast(kind)
        if str(kind).startswith("decimal"):
            cells = cells.cast(pa.string())
        if is_text(cells.type):
            values, missing = self._text(cells.cast(pa.string()))
        else:
            values, missing = self._typed(cells)
        for number in self._marks.missing_numbers:
            same = values == number
            if same.any():
                missing = same if missing is None else missing | same
        return values, missing

    # Types ------------------------------------------------------------------------

    def _typed(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        kind = cells.type
        missing: Mask | None = None
        if cells.null_count:
            missing = cells.is_null().to_numpy(zero_copy_only=False)
            if pa.types.is_null(kind):
                return np.zeros(len(cells), self._kind), missing
            cells = pc.fill_null(cells, False if pa.types.is_boolean(kind) else 0)
        values: Elements = cells.to_numpy(zero_copy_only=False)
        if values.dtype.kind == "f":
            if values.dtype.itemsize < 4:
                values = values.astype(np.float32)
            nan = np.isnan(values)
            if nan.any():
                missing = nan if missing is None else missing | nan
                if not self._is_float:
                    values = np.where(nan, 0, values)
            if not self._is_float:
                values = self._whole(values)
            return values, missing
        if self._is_float:
            made = values.astype(np.float64)
            if values.itemsize == 8:
                self._compare(values, made, missing)
            return made, missing
        if values.dtype == np.uint64 and values.size and values.max() >= 2**63:
            at = int((values >= 2**63).argmax())
            raise unfit(at, int(values[at]), self._dtype)
        return values.astype(np.int64), missing

    def _whole(self, values: Elements) -> Elements:
        """Return floats as int64."""
        wide = values.astype(np.float64)
        fits = (np.abs(wide) < 2.0**63) & (wide == np.trunc(wide))
        if not fits.all():
            at = int(fits.argmin())
            raise unfit(at, wide[at].item(), self._dtype)
        return wide.astype(np.int64)

    def _compare(self, values: Elements, made: Elements, missing: Mask | None) -> None:
        """Find the first integer that is no float64."""
        large = np.abs(made) >= _EXACT
        if missing is not None:
            large &= ~missing
        for at in np.flatnonzero(large) if large.any() else ():
            if int(values[at]) != int(made[at]):
                self.inexact_at = int(at)
                return

    # Text -------------------------------------------------------------------------

    def _text(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        if self._is_word is None or self._is_word or self._dtype == "bool":
            words = self._words(cells)
            if words is not None:
                return words
        plain = self._plain(cells)
        return self._careful(cells) if plain is None else plain

    def _plain(self, cells: Arrow) -> tuple[Elements, Mask | None] | None:
        """Return numbers if all cells are plain or missing, quickly, else nothing."""
        marks = self._marks
        if marks.decimal != "." or marks.thousands:
            made = self._pointed(cells)
            if made is None:
                return None
            cells = made
        count = len(cells)
        _, places, text = cells.buffers()
        if text is None or not count:
            return None
        at = np.frombuffer(places, np.int32)[cells.offset :][: count + 1]
        view = np.frombuffer(text, np.uint8)
        if not view.size:
            return None
        begins, ends = at[:-1], at[1:]
        first = view.take(begins, mode="clip")
        # Not one of + , - . / 0 to 9: unsigned, what is below + is far above.
        odd = first - np.uint8(0x2B) > 0x0E
        odd |= begins == ends
        missing: Mask | None = None
        if cells.null_count:
            odd |= cells.is_null().to_numpy(zero_copy_only=False)
        if odd.any():
            which = np.flatnonzero(odd)
            if not missing_mask(cells.take(pa.array(which)), marks.missing).all():
                return None
            missing = odd
            present = np.packbits(~odd, bitorder="little")
            cells = pa.Array.from_buffers(
                pa.string(), count, [pa.py_buffer(present), pa.py_buffer(at), text]
            )
        if not marks.zeros or not self._is_float:
            digits = begins + ((first == 0x2B) | (first == 0x2D))
            zero = view.take(digits, mode="clip") == 0x30
            digits += 1
            zero &= _BEHIND_ZERO.take(view.take(digits, mode="clip"))
            zero &= digits < ends
            if zero.any():
                return None
        try:
            made = cells.cast(pa.float64() if self._is_float else pa.int64())
        except pa.ArrowInvalid:
            return None
        values: Elements
        if missing is None:
            values = made.to_numpy()
        else:
            values = np.frombuffer(made.buffers()[1], self._kind)[:count]
        if self._is_float and not (-_EXACT < values.min() <= values.max() < _EXACT):
            finite = np.isfinite(values)
            large = np.abs(values) >= _EXACT
            if missing is not None:
                finite |= missing
                large &= ~missing
            if not finite.all():
                return None
            if large.any():
                self._compare_text(cells, values, large)
        return values, missing

    def _pointed(self, cells: Arrow) -> Arrow | None:
        """Return cells with a point for the decimal mark, and no other mark."""
        marks = self._marks
        if marks.thousands:
            group = _group(marks.thousands)
            grouped = pc.match_substring_regex(cells, group)
            if pc.any(grouped).as_py():
                mark = re.escape(marks.decimal)
                whole = rf"^\s*[+-]?[0-9]{{1,3}}({group}[0-9]{{3}})+({mark}[0-9]*)?\s*$"
                well = pc.match_substring_regex(cells, whole)
                if pc.any(pc.and_not(grouped, well)).as_py():
                    return None
                cells = pc.replace_substring_regex(cells, group, "")
        if marks.decimal != ".":
            if pc.any(pc.match_substring(cells, ".")).as_py():
                return None
            cells = pc.replace_substring(cells, marks.decimal, ".")
        return cells

    def _compare_text(self, cells: Arrow, values: Elements, large: Mask) -> None:
        """Find the first whole number in digits that is no float64."""
        for at in np.flatnonzero(large):
            text = cells[int(at)].as_py().strip().lstrip("+")
            digits = text.removeprefix("-")
            if digits.isdigit() and (
                len(digits) > 400 or int(text) != int(values[at].item())
            ):
                self.inexact_at = int(at)
                return

    def _words(self, cells: Arrow) -> tuple[Elements, Mask | None] | None:
        """Return words as numbers, if it is a column of words."""
        if self._is_word is None:
            first = self._first(cells)
            if first is None:
                return None
            self._is_word = first in WORDS
        if not self._is_word and self._dtype != "bool":
            return None
        coded = pc.utf8_lower(pc.utf8_trim_whitespace(cells)).dictionary_encode()
        texts = coded.dictionary.to_pylist()
        known = [_BOOLEANS.get(one, -1) for one in texts]
        missing = missing_mask(cells, self._marks.missing)
        values: Elements = np.zeros(len(cells), self._kind)
        places = coded.indices.fill_null(0).to_numpy()
        if known:
            values = np.array(known, self._kind)[places]
        wrong = (values < 0) & ~missing
        if wrong.any():
            if not self._is_word:
                return None  # a number in a column of bool
            at = int(wrong.argmax())
            raise misfit(at, "yes, no, true, false, 0 or 1", quote(cells[at].as_py()))
        values[missing] = 0
        return values, missing if missing.any() else None

    def _first(self, cells: Arrow) -> str | None:
        """Return the first cell that has a value, in lower case."""
        for begin in range(0, len(cells), 1_000):
            some = cells[begin : begin + 1_000]
            missing = missing_mask(some, self._marks.missing)
            if not missing.all():
                text: str = some[int(missing.argmin())].as_py()
                return text.strip().lower()
        return None

    def _careful(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return the numbers, or say which cell is none."""
        marks = self._marks
        trimmed = pc.fill_null(pc.utf8_trim_whitespace(cells), "")
        missing = missing_mask(trimmed, marks.missing)
        present = pa.array(~missing)
        text = trimmed
        if marks.thousands:
            mark, group = re.escape(marks.decimal), _group(marks.thousands)
            whole = rf"^[+-]?[0-9]{{1,3}}({group}[0-9]{{3}})+({mark}[0-9]*)?$"
            grouped = pc.match_substring_regex(text, whole)
            text = pc.if_else(
                grouped, pc.replace_substring_regex(text, group, ""), text
            )
        if marks.decimal != ".":
            pointed = pc.match_substring(text, ".")
            text = pc.replace_substring(text, marks.decimal, ".")
            text = pc.if_else(pointed, "?", text)
        self._refuse(pc.and_not(present, pc.match_substring_regex(text, NUMBER)), cells)
        zeros = pc.match_substring_regex(text, _ZEROS)
        if not marks.zeros and pc.any(pc.and_(present, zeros)).as_py():
            at = int(pc.and_(present, zeros).to_numpy(zero_copy_only=False).argmax())
            raise MisfitError(
                at,
                f"expected a number, got {quote(trimmed[at].as_py())}, whose first 0 "
                "would be lost",
                f'write encode = {{ {toml_key(self._name)} = "number" }} if it is '
                "one, or list its texts there as categories, or leave it out",
            )
        text = pc.if_else(present, text, pa.scalar(None, pa.string()))
        values: Elements = np.zeros(len(cells))
        values[~missing] = text.drop_null().cast(pa.float64()).to_numpy()
        infinite = np.isinf(values)
        if infinite.any():
            at = int(infinite.argmax())
            shown = quote(trimmed[at].as_py())
            if self._is_float:
                raise misfit(at, "a number that a float can hold", shown)
        large = (np.abs(values) >= _EXACT) & ~missing
        if self._is_float:
            if large.any():
                self._compare_text(text, values, large)
            return values, missing if missing.any() else None
        return self._integers(text, values, large, missing)

    def _integers(
        self, text: Arrow, values: Elements, large: Mask, missing: Mask
    ) -> tuple[Elements, Mask | None]:
        """Return whole numbers, of digits exactly."""
        whole = np.where(large, 0, values)
        wrong = whole != np.trunc(whole)
        made = whole.astype(np.int64)
        for at in np.flatnonzero(large | wrong):
            cell = text[int(at)].as_py()
            if wrong[at]:
                raise unfit(int(at), values[at].item(), self._dtype)
            if not re.fullmatch(_PLAIN, cell):
                raise misfit(int(at), "a whole number in plain digits", quote(cell))
            number = int(cell) if len(cell) < 100 else 2**63
            if not -(2**63) <= number < 2**63:
                expected = f"a number that {self._dtype} can hold"
                raise misfit(int(at), expected, quote(cell))
            made[at] = number
        return made, missing if missing.any() else None

    def _refuse(self, wrong: Arrow, cells: Arrow) -> None:
        """Say what is wrong with the first cell that is no number."""
        mask: Mask = wrong.to_numpy(zero_copy_only=False)
        if not mask.any():
            return
        at = int(mask.argmax())
        cell: str = cells[at].as_py()
        raise TextError(at, f"expected a number, got {quote(cell)}", self._advice(cell))

    def _advice(self, cell: str) -> str:
        lower, marks = cell.strip().lower(), self._marks
        for mark, group in GROUPS.items():
            if re.fullmatch(
                rf"[+-]?[0-9]{{1,3}}([{group}][0-9]{{3}})+([.,][0-9]*)?", lower
            ):
                decimal = 'and decimal = ",", ' if "," in lower else ""
                return f"write thousands = {quote(mark)}, {decimal}or correct it"
        if lower in WORDS:
            return "it is a column of numbers, as its first cell says: correct the cell"
        if marks.decimal == ",":
            if "." in lower:
                return 'correct it, or write thousands = ".", or leave decimal out'
        elif re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?", lower):
            return 'write thousands = ",", or decimal = ","'
        elif re.fullmatch(r"[+-]?[0-9]*,[0-9]+", lower):
            return 'correct it, or write decimal = ","'
        return ""


def _group(thousands: str) -> str:
    """Return what matches a mark between groups of digits."""
    return f"[{re.escape(GROUPS.get(thousands, thousands))}]"
