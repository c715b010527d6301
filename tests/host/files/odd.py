"""Files whose cells, dates or frames are easily taken for something else."""

from __future__ import annotations

import datetime
import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from safetensors.torch import save

from .binary import duckdb_of, image, npy, parquet, sqlite
from .cases import Cases

ODD = Cases("d.csv")
_, no = ODD.loads, ODD.refuses
nan = float("nan")
STAR = 'features = "*"\n'
DAYS = STAR + 'encode = { d = "days" }\n'

# --- numbers ----------------------------------------------------------------------

for space, what in (("\u00a0", "no-break"), ("\u202f", "narrow no-break")):
    _(
        f"thousands with {what} spaces",
        f"a;b\n1{space}234,5;2\n12;3\n",
        STAR + 'delimiter = ";"\ndecimal = ","\nthousands = " "',
        [[1234.5, 2], [12, 3]],
    )
_(
    "thousands with a printed apostrophe",
    "a\n1\u2019234.5\n1'000\n",
    STAR + 'thousands = "\'"',
    [[1234.5], [1000]],
)
no(
    "thousands with spaces, not told",
    "a;b\n1\u00a0234,5;2\n",
    STAR + 'delimiter = ";"\ndecimal = ","',
    'write thousands = " "',
)
no(
    "times with fractions of a second",
    "t,a\n1704412800.5,1\n1704412801.25,2\n",
    STAR,
    'row 1 (line 2), column "t": expected numbers whose fractions float32 can hold',
)
_(
    "times with fractions, as float64",
    "t\n1704412800.5\n1704412801.25\n",
    STAR + 'dtype = "float64"',
    [[1704412800.5], [1704412801.25]],
    dtypes={"features": "float64"},
)
no("times in an array", npy([1.7e9 + 0.5]), 'dtype = "float32"', "row 1", file="d.npy")
_(
    "days of Julius with times",
    "t\n2460314.75\n2460315.79\n",
    features=[[2460314.75], [2460315.79]],
    noted="rounded to steps of 0.25",
)
no(
    "times in Parquet",
    parquet(t=[1.7e9 + 0.5, 1.7e9 + 1]),
    STAR,
    'dtype = "float64"',
    file="d.parquet",
)
no("a minus of print", "a\n1\n\u22125\n", STAR, "correct the cell")
no(
    "errors of a spreadsheet",
    "a,b\n1,2\n#N/A,3\n#DIV/0!,4\n",
    STAR,
    'missing_values = ["#N/A", "#DIV/0!"]',
)
_(
    "a database's null",
    "a\tb\n1\t2\n\\N\t3\n",
    STAR + "missing = \"nan\"\nmissing_values = ['\\N']",
    [[1, 2], [nan, 3]],
    file="d.tsv",
)
_(
    "words of several languages",
    "a,b,c\nvero,tak,да\nfalso,nie,нет\n",
    STAR + 'encode = { a = "boolean", b = "boolean", c = "boolean" }',
    [[1, 1, 1], [0, 0, 0]],
)
_(
    "exponents with a decimal comma",
    "a;b\n1,5E+03;1\n",
    STAR + 'delimiter = ";"\ndecimal = ","',
    [[1500, 1]],
)
no("a footer", "a,b\n1,2\n\nSource: WHO\n", STAR, "row 2 (line 4)")

# --- encodings --------------------------------------------------------------------

for order in ("le", "be"):
    _(
        f"UTF-16 without its mark, {order}",
        "名,b\n年齢,2\n".encode(f"utf-16-{order}"),
        'features = ["b"]\nencoding = "utf-16"',
        [[2]],
    )

# --- dates and times --------------------------------------------------------------

_(
    "dates before 1970",
    "d\n1969-12-31\n1900-01-01\n",
    DAYS,
    [[-1], [-25567]],
)
_(
    "times of day",
    "t\n12:00\n18:00\n",
    STAR + 'encode = { t = { days = "%H:%M" } }',
    [[0.5], [0.75]],
)
no("times of day, not told", "t\n12:30\n13:00\n", STAR, '{ days = "%H:%M" }')
no(
    "dates as SAS writes them, not told",
    "d\n05JAN2024\n06FEB2024\n",
    STAR,
    'days = "%d%b%Y"',
)
no(
    "a date without its year",
    "d\n05.01.\n",
    STAR + 'encode = { d = { days = "%d.%m." } }',
    "expected how a whole date is written",
)
no(
    "times with a zone and without",
    "d\n2024-01-05T00:30:00+02:00\n2024-01-05T12:00:00\n",
    DAYS + 'dtype = "float64"',
    "row 2 (line 3)",
)
no(
    "times in nanoseconds",
    "d\n2024-01-05 00:00:00.000000001\n",
    DAYS + 'dtype = "float64"',
    "microseconds",
)
_(
    "the day is that of the zone",
    "d\n2024-01-05T00:30:00+02:00\n",
    STAR + 'encode = { d = "parts" }',
    [[2024, 1, 5]],
)
_(
    "parquet, the day is that of the zone",
    parquet(d=pa.array([1704409200000000], pa.timestamp("us", "Europe/Berlin"))),
    STAR + 'encode = { d = "parts" }',
    [[2024, 1, 5]],
    file="d.parquet",
    noted="Europe/Berlin",
)
for kind in ("date", "timestamp"):
    no(
        f"duckdb, an infinite {kind}",
        duckdb_of(f"create table t as select 'infinity'::{kind} as d"),  # ours
        'query = "select d from t order by d"\n' + DAYS,
        'row 1, column "d"',
        file="d.duckdb",
    )

# --- conditions -------------------------------------------------------------------

WHERE = 'features = ["a"]\nwhere = '
no(
    "a condition orders dates as texts",
    "a,d\n1,01.05.2019\n2,01.01.2020\n",
    WHERE + "\"d >= '01.01.2020'\"",
    "texts are ordered by letters",
)
no(
    "a condition orders numbers as texts",
    "a,n\n1,9\n2,10\n",
    WHERE + "\"n >= '10'\"",
    "numbers without quotes",
)
_(
    "a condition orders codes",
    "a,icd\n1,C00\n2,D10\n",
    WHERE + "\"icd < 'D'\"",
    [[1]],
)
no(
    "a condition on ids beyond float64",
    "a,id\n1,9007199254740993\n2,9007199254740992\n",
    WHERE + '"id == 9007199254740993"',
    "in quotes",
)
_(
    "a condition on ids as texts",
    "a,id\n1,9007199254740993\n2,9007199254740992\n",
    WHERE + "\"id == '9007199254740993'\"",
    [[1]],
)
_(
    "parquet, a condition on unsigned ids",
    parquet(a=[1, 2], id=pa.array([2**64 - 1, 5], pa.uint64())),
    WHERE + '"id > 6"',
    [[1]],
    file="d.parquet",
)
_(
    "parquet, a condition on single floats",
    parquet(a=[1, 2], z=pa.array([0.1, 0.2], pa.float32())),
    WHERE + '"z <= 0.1"',
    [[1]],
    file="d.parquet",
)
no(
    "a condition on texts as numbers",
    "a,c\n1,x\n",
    WHERE + '"c == 1"',
    "compare it with a text in quotes",
)

# --- parts, lists, databases ------------------------------------------------------

_(
    "parts of other types",
    {"p/1.parquet": parquet(a=[1, 2]), "p/2.parquet": parquet(a=[1.5])},
    'path = "p"\nformat = "parquet"\n' + STAR,
    [[1], [2], [1.5]],
)
_(
    "a category that is not in each part",
    {
        "p/1.parquet": parquet(g=pa.array(["x", "z"]).dictionary_encode()),
        "p/2.parquet": parquet(g=pa.array(["z"]).dictionary_encode()),
    },
    'path = "p"\nformat = "parquet"\n' + STAR + 'encode = { g = ["x", "y", "z"] }',
    [[0], [2], [2]],
)
_(
    "one-hot, a missing value",
    "g,b\nx,1\n,2\ny,3\n",
    STAR + 'encode = { g = { one_hot = ["x", "y"] } }\nmissing = "nan"',
    [[1, 0, 1], [nan, nan, 2], [0, 1, 3]],
)
_(
    "one-hot, filled with none of them",
    "g,b\nx,1\n,2\n",
    STAR + 'encode = { g = { one_hot = ["x", "y"] } }\nmissing = { fill = 0 }',
    [[1, 0, 1], [0, 0, 2]],
)
no(
    "one-hot, filled with a number",
    "g,b\nx,1\n,2\n",
    STAR + 'encode = { g = { one_hot = ["x", "y"] } }\nmissing = { fill = 1 }',
    'row 2 (line 3), column "g"',
)
_(
    "one-hot, dropped, under a condition",
    "g,b,y\nx,1,2019\n,2,2020\ny,3,2021\ny,,2021\n",
    'features = ["g", "b"]\nencode = { g = { one_hot = ["x", "y"] } }\n'
    'missing = "drop"\nwhere = "y >= 2020"',
    [[0, 1, 3]],
)
no(
    "a fill for a column that is not used",
    "a,b\n1,\n2,3\n",
    'features = ["b"]\nmissing = { fill = { a = 1 } }',
    'column "a"',
)
_(
    "sqlite, a column of several types",
    sqlite("create table t (a)", "insert into t values (1), (2.5), ('3')"),
    'query = "select a from t order by rowid"\n' + STAR,
    [[1], [2.5], [3]],
    file="d.sqlite",
)
_(
    "parquet, several types of dates",
    parquet(d=pa.array([datetime.date(1969, 12, 31)], pa.date64())),
    DAYS,
    [[-1]],
    file="d.parquet",
)

# --- other files, and loaders -----------------------------------------------------

for head, what in ((b"PK\x03\x04", ".xlsx"), (b"\xd0\xcf\x11\xe0", ".xls")):
    no(f"a workbook that is called CSV, {what}", head + bytes(90), STAR, what)
no(
    "safetensors, a file that the index names is missing",
    {
        "m.safetensors.index.json": '{"weight_map": {"x": "1.safetensors", '
        '"y": "2.safetensors"}}',
        "1.safetensors": save({"x": torch.ones(2)}),
    },
    'features = "x"',
    "2.safetensors: there is no such file",
)


def loader(returned: str) -> dict[str, str]:
    """Return a module whose function returns this."""
    return {
        "d.csv": "",
        "clinic.py": "import numpy as np, pandas as pd\n"
        f"def load(path):\n    return {returned}\n",
    }


no(
    "a loader's masked array",
    {"clinic.py": loader("np.ma.array([1.0, 2.0], mask=[0, 1])")["clinic.py"]},
    'loader = "clinic:load"',
    "masked array",
)
no(
    "a loader's column of several types",
    loader("pd.DataFrame({'a': ['1', 2.5]})"),
    STAR + 'loader = "clinic:load"',
    "column 'a' of the table has values of several types",
)
_(
    "a loader's series",
    loader("pd.Series([1.5, 2.5], name='a')"),
    STAR + 'loader = "clinic:load"',
    [[1.5], [2.5]],
)

# --- images -----------------------------------------------------------------------


def stack(kind: str) -> bytes:
    """Return two images in one file."""
    stream = io.BytesIO()
    frames = [Image.fromarray(np.full((2, 2), i, np.uint8)) for i in (1, 9)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


for ending, kind in (("gif", "GIF"), ("tif", "TIFF")):
    no(
        f"images, several in one {ending}",
        {f"i/a/1.{ending}": stack(kind), "i/b/1.png": image(9, "L")},
        'path = "i"\nformat = "images"\nsize = [2, 2]',
        f"1.{ending}: has 2 images",
    )
