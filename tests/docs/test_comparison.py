"""The page that compares libraries counts what it shows."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
JOBS = ("obhut", "Flower", "NVFlare", "PySyft 0.2")
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def section(title: str) -> str:
    """Return what stands below a heading of the third level."""
    return re.split(r"^##+ ", PAGE.split(f"\n### {title}\n")[1], flags=re.MULTILINE)[0]


def programs(title: str) -> list[str]:
    """Return the files that a section shows."""
    text = section(title)
    included = re.findall(r"^```\{literalinclude\} (\S+)$", text, re.MULTILINE)
    files = [(ROOT / "docs" / path).read_text(encoding="utf-8") for path in included]
    return files + re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def lines(program: str) -> int:
    """Return how many of a program's lines are code."""
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    found = {
        line
        for one in tokens
        if one.type not in NO_CODE
        for line in range(one.start[0], one.end[0] + 1)
    }
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def test_only_code_is_counted() -> None:
    """Neither blank lines nor comments nor docstrings are."""
    program = '"""One.\n\nTwo."""\n\n# three\nx = [\n    1,  # four\n]\n'
    assert lines(program) == 3


def test_the_page_counts_right() -> None:
    """Its table has the lines and the files of each job, the model's among them."""
    shown = {
        name: (int(count), int(files))
        for name, count, files in re.findall(
            r"^\| ([\w. ]+?) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE
        )
    }
    model = programs("The model, for the others")
    files = {name: programs(name) for name in JOBS}
    files = {
        name: own if name == "obhut" else own + model for name, own in files.items()
    }
    assert shown == {
        name: (sum(map(lines, own)), len(own)) for name, own in files.items()
    }


def test_all_are_formatted_alike() -> None:
    """None is longer than another because its lines are short, or the reverse."""
    longest = max(
        len(line)
        for name in JOBS
        for own in programs(name)
        for line in own.splitlines()
    )
    assert longest <= 88
