"""Texts that nobody recorded, made from one that somebody did.

``OBHUT_FUZZ`` says how many of them are run; ``make fuzz`` runs 10,000.
"""

from __future__ import annotations

import os
import re
from random import Random

from obhut.protocol import limits

_WORDS = (
    *("0", "-1", "1000000000000", "$B", "7*$B-3", "None", "True", "here", "float64"),
    *("%x", "%y", "%0", "%3", "[]", "[%0]", "0x1.8p+1", "float nan", "no_grad"),
    *("aten.relu_.default", "aten.zeros.default", "aten.set_.source_Tensor"),
    *("$N0", "2*$K0-1", "$N7", "next", "carry", "then:", "epochs", "batches", "all"),
    *("aten.resize_.default", "aten.as_strided.default", "backward", "alias", "data"),
)


_TEXTS = int(os.environ.get("OBHUT_FUZZ", "1000"))


SESSION = limits.PROGRAMS_PER_SESSION // 2
"""So many texts are run in one session, which takes no more than twice as many."""


def texts(of_thousand: int) -> int:
    """Return how many texts a test runs, if it runs so many of a thousand."""
    return -(-of_thousand * _TEXTS // 1000)


def mutated(text: str, random: Random) -> str:
    """Return a text that differs in one to three places."""
    for _ in range(random.randint(1, 3)):
        text = random.choice(_WAYS)(text, random)
    return text


def _character(text: str, random: Random) -> str:
    place = random.randrange(len(text))
    return text[:place] + chr(random.randrange(32, 127)) + text[place + 1 :]


def _line(text: str, random: Random) -> str:
    lines = text.split("\n")
    one, other = random.sample(range(len(lines)), 2)
    way = random.randrange(3)
    if way == 0:
        lines[one], lines[other] = lines[other], lines[one]
    elif way == 1:
        del lines[one]
    else:
        lines.insert(one, lines[other])
    return "\n".join(lines)


def _token(text: str, random: Random) -> str:
    found = list(re.finditer(r"%?[\w.$*+-]+:?", text))
    one = random.choice(found)
    word = random.choice((*_WORDS, random.choice(found)[0]))
    return text[: one.start()] + word + text[one.end() :]


def _operator(text: str, random: Random) -> str:
    found = list(re.finditer(r"aten\.\w+\.\w+", text))
    if not found:
        return text
    one, other = random.choice(found), random.choice(found)
    return text[: one.start()] + other[0] + text[one.end() :]


_WAYS = (_character, _line, _token, _token, _token, _operator)
