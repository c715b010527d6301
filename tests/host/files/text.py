"""Text files as spreadsheets, registers and scripts write them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile

from .cases import Cases

TEXT = Cases("d.csv")
_, no = TEXT.loads, TEXT.refuses
nan = float("nan")


def zipped(**members: str) -> bytes:
    """Return a zip archive of texts."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(f"{name}.csv", text)
    return stream.getvalue()


# --- plain tables -----------------------------------------------------------------

_("plain", "a,b\n1,2\n3,4\n", features=[[1, 2], [3, 4]])
_("one column alone", "a,b\n1,2\n3,4\n", 'features = "b"', [2, 4])
_("columns in the order asked for", "a,b\n1,2\n", 'features = ["b", "a"]', [[2, 1]])
_(
    "target",
    "a,y\n1,5\n2,6\n",
    'features = "*"\ntarget = "y"',
    [[1], [2]],
    target=[5, 6],
)
_(
    "target as a column",
    "a,y\n1,5\n",
    'features = ["a"]\ntarget = ["y"]',
    [[1]],
    target=[[5]],
)
_("target first", "y,a\n5,1\n", 'features = "*"\ntarget = "y"', [[1]], target=[5])
_("no newline at the end", "a\n1\n2", features=[[1], [2]])
_("carriage returns", "a,b\r\n1,2\r\n", features=[[1, 2]])
_("old carriage returns", "a,b\r1,2\r3,4\r", features=[[1, 2], [3, 4]])
_("spaces around cells", "a,b\n 1 , 2\n", features=[[1, 2]])
_("signs and exponents", "a,b\n+1.5,-2e-3\n", features=[[1.5, -0.002]])
_("no digit before the mark", "a\n.5\n5.\n", features=[[0.5], [5]])
_("tabs", "a\tb\n1\t2\n", features=[[1, 2]], file="d.tsv")
_("pipes", "a|b\n1|2\n", 'features = "*"\ndelimiter = "|"', [[1, 2]])
_("quoted numbers", '"a","b"\n"1","2"\n', features=[[1, 2]])
_("byte order mark", "\ufeffa,b\n1,2\n", 'features = ["a"]', [[1]])
_(
    "integers as integers",
    "a\n9007199254740993\n",
    'features = "*"\ndtype = "int64"',
    [[9007199254740993]],
    dtypes={"features": "int64"},
)
_(
    "double",
    "a\n0.1\n",
    'features = "*"\ndtype = "float64"',
    [[0.1]],
    dtypes={"features": "float64"},
)
_(
    "half",
    "a\n0.5\n",
    'features = "*"\ndtype = "float16"',
    [[0.5]],
    dtypes={"features": "float16"},
)
_(
    "bfloat16",
    "a\n0.5\n-3\n",
    'features = "*"\ndtype = "bfloat16"',
    [[0.5], [-3]],
    dtypes={"features": "bfloat16"},
)
_(
    "booleans",
    "a\nyes\nno\n",
    'features = "*"\ndtype = "bool"',
    [[True], [False]],
    dtypes={"features": "bool"},
)
_("words in a column of words", "a,b\nyes,1\nno,2\n", features=[[1, 1], [0, 2]])
_(
    "columns that are not used may hold anything",
    'name,a\nBob,1\n"O\'Hara, Jr.",2\n',
    'features = ["a"]',
    [[1], [2]],
)
_(
    "a long cell that is not used",
    "note,a\n" + "x" * 300_000 + ",1\n",
    'features = ["a"]',
    [[1]],
)
_("names that come twice and are not used", "x,x,a\n1,2,3\n", 'features = ["a"]', [[3]])
_(
    "a column name with spaces and umlauts",
    "Größe (cm),a\n170,1\n",
    'features = ["Größe (cm)"]',
    [[170]],
)
no(
    "a name that comes twice and is used",
    "x,x,a\n1,2,3\n",
    'features = ["x"]',
    "expected one column of this name, got 2",
)
no(
    "a name that is not there",
    "age,a\n1,2\n",
    'features = ["agee"]',
    'did you mean "age"?',
)
no(
    "text in a column of numbers",
    "a\n1\nx\n",
    'features = "*"',
    'row 2 (line 3), column "a": expected a number, got "x"',
)
no("underscores", "a\n1\n1_000\n", 'features = "*"', 'got "1_000"')
no("hexadecimal", "a\n1\n0x10\n", 'features = "*"', 'got "0x10"')
no(
    "digits of another script",
    "a\n1\n\u0661\u0662\n",
    'features = "*"',
    "expected a number",
)
no("infinity", "a\n1\ninf\n", 'features = "*"', "row 2")
no("too large for the type", "a\n1\n1e39\n", 'features = "*"', "row 2")
no("300 as int8", "a\n1\n300\n", 'features = "*"\ndtype = "int8"', "row 2")
no(
    "a fraction as an integer",
    "a\n1\n1.5\n",
    'features = "*"\ndtype = "int32"',
    "row 2",
)
no("a no among numbers", "a\n1\nno\n", 'features = "*"', "row 2")
no("only a header", "a,b\n", 'features = "*"', "no rows")
no("nothing", "", 'features = "*"', "d.csv")
no("a cell too many", "a,b\n1,2\n1,2,3\n", 'features = "*"', "row 2 (line 3)")
no("a cell too few", "a,b\n1,2\n1\n", 'features = "*"', "row 2 (line 3)")
no("an open quote", 'a,b\n"1,2\n', 'features = "*"', "quote")
no("another delimiter", "a;b\n1;2\n", 'features = ["a"]', 'delimiter = ";"')

# --- nothing changes in silence ---------------------------------------------------

no(
    "dates as numbers",
    "day,a\n20240105,1\n20240106,2\n20240107,3\n",
    'features = "*"',
    'column "day"',
)
no(
    "times as numbers",
    "t,a\n1700000001,1\n1700000002,2\n",
    'features = "*"',
    'column "t"',
)
no("ids", "id,a\n123456789,1\n987654321,2\n", 'features = "*"', 'column "id"')
no(
    "whole numbers of doubles",
    "a\n9007199254740993\n",
    'features = "*"\ndtype = "float64"',
    'column "a"',
)
_(
    "whole numbers that float32 has",
    "a\n16777216\n20000000\n",
    features=[[16777216], [20000000]],
)
_(
    "a few large numbers among fractions",
    "a\n123456789.5\n0.25\n",
    features=[[123456789.5], [0.25]],
)
_(
    "large numbers as float64",
    "day\n20240105\n",
    'features = "*"\ndtype = "float64"',
    [[20240105]],
    dtypes={"features": "float64"},
)
_(
    "large numbers as int64",
    "day\n20240105\n",
    'features = "*"\ndtype = "int64"',
    [[20240105]],
    dtypes={"features": "int64"},
)
_(
    "large numbers left out",
    "id,a\n123456789,1\n",
    'features = "*"\nexclude = ["id"]',
    [[1]],
)
no("leading zeros", "zip,a\n01067,1\n80331,2\n", 'features = "*"', 'column "zip"')
_(
    "leading zeros that are numbers",
    "zip,a\n01067,1\n80331,2\n",
    'features = "*"\nencode = { zip = "number" }',
    [[1067, 1], [80331, 2]],
)
_(
    "leading zeros that are categories",
    "zip,a\n01067,1\n80331,2\n",
    'features = "*"\nencode = { zip = ["01067", "80331"] }',
    [[0, 1], [1, 2]],
)
_("zeros that lead nothing", "a\n0\n0.5\n", features=[[0], [0.5]])
no("thousands", 'a\n"1,234"\n"2,500"\n', 'features = "*"', "thousands")
_(
    "thousands, told",
    'a\n"1,234"\n"2,500.5"\n',
    'features = "*"\nthousands = ","',
    [[1234], [2500.5]],
)
no("thousands that are none", 'a\n"1,23"\n', 'features = "*"\nthousands = ","', "row 1")
_(
    "thousands of German writing",
    "a;b\n1.234,5;2\n",
    'features = "*"\ndelimiter = ";"\ndecimal = ","\nthousands = "."',
    [[1234.5, 2]],
)
_(
    "thousands of Swiss writing",
    "a\n1'234.5\n",
    'features = "*"\nthousands = "\'"',
    [[1234.5]],
)
no(
    "a decimal comma, not told",
    "a;b\n1,5;2\n",
    'features = "*"\ndelimiter = ";"',
    'decimal = ","',
)
_(
    "a decimal comma",
    "a;b\n1,5;2\n",
    'features = "*"\ndelimiter = ";"\ndecimal = ","',
    [[1.5, 2]],
)
no(
    "a point where a comma is due",
    "a;b\n1.5;2\n",
    'features = "*"\ndelimiter = ";"\ndecimal = ","',
    "row 1",
)
_("pandas' index", ",a\n0,5\n1,6\n2,7\n", features=[[5], [6], [7]], noted="index")
_(
    "an index that was written twice",
    "Unnamed: 0,a\n0,5\n1,6\n",
    features=[[5], [6]],
    noted="index",
)
_(
    "an index beside columns that are named",
    ",a\n0,5\n1,6\n",
    'features = ["a"]',
    [[5], [6]],
)
no("a column without a name", ",a\n17,5\n23,6\n", 'features = "*"', "name")
_("empty columns at the end", "a,b,,\n1,2,,\n3,4,,\n", features=[[1, 2], [3, 4]])
_("empty rows at the end", "a,b\n1,2\n,\n,\n", features=[[1, 2]], noted="empty")
_("blank lines at the end", "a,b\n1,2\n\n\n", features=[[1, 2]])
_("blank lines between rows", "a,b\n1,2\n\n3,4\n", features=[[1, 2], [3, 4]])
no("an empty row between rows", "a,b\n1,2\n,\n3,4\n", 'features = "*"', "row 2")
_(
    "a sentinel is told",
    "a\n" + "\n".join(map(str, range(20, 60))) + "\n-999\n",
    features=[*([i] for i in range(20, 60)), [-999]],
    noted="-999",
)

# --- headers ----------------------------------------------------------------------

_("no header, told", "1,2\n3,4\n", 'features = "*"\nheader = false', [[1, 2], [3, 4]])
_(
    "no header, found out",
    "1.5,2\n3.25,4.5\n7,8\n",
    features=[[1.5, 2], [3.25, 4.5], [7, 8]],
    noted="first row has data",
)
_(
    "no header, columns by number",
    "1.5,2,9\n3.25,4.5,8\n",
    'features = ["1", "2"]\ntarget = "3"\nheader = false',
    [[1.5, 2], [3.25, 4.5]],
    target=[9, 8],
)
_(
    "a header of numbers, told",
    "2019,2020\n1,2\n",
    'features = "*"\nheader = true',
    [[1, 2]],
)
no(
    "a header of years",
    "2019,2020,2021\n1.5,2.5,3.5\n4.5,5.5,6.5\n",
    'features = "*"',
    "header",
)
no(
    "a header that counts",
    "0,1,2\n1.5,2.5,3.5\n4.5,5.5,6.5\n",
    'features = "*"',
    "header",
)
_(
    "a header of numbers that is named",
    "2019,2020\n1,2\n",
    'features = ["2019", "2020"]',
    [[1, 2]],
)
_(
    "a header over categories",
    "sex,smoker\nf,yes\nm,no\n",
    'features = "*"\nencode = { sex = ["f", "m"], smoker = "boolean" }',
    [[0, 1], [1, 0]],
)
_(
    "lines above the header",
    "Export of 2024\nWard 5\na,b\n1,2\n",
    'features = "*"\nskip = 2',
    [[1, 2]],
)
_(
    "comments",
    "# from the lab\na,b\n1,2\n# a pause\n3,4\n",
    'features = "*"\ncomment = "#"',
    [[1, 2], [3, 4]],
)
_(
    "comments behind cells",
    "a,b\n1,2 # good\n3,4\n",
    'features = "*"\ncomment = "#"',
    [[1, 2], [3, 4]],
)
_(
    "a mark of comments in quotes",
    'a,n\n1,"# 5"\n2,x\n',
    'features = ["a"]\ncomment = "#"',
    [[1], [2]],
)

# --- missing values ---------------------------------------------------------------

no("an empty cell", "a,b\n1,2\n,4\n", 'features = "*"', 'row 2 (line 3), column "a"')
no("NA", "a\n1\nNA\n", 'features = "*"', "row 2")
_(
    "missing as NaN",
    "a,b\n1,NA\n,4\n",
    'features = "*"\nmissing = "nan"',
    [[1, nan], [nan, 4]],
)
_(
    "missing in any writing",
    "a\n1\nnull\nNaN\nn/a\nN/A\nnone\nnan\n NA \n",
    'features = "*"\nmissing = "nan"',
    [[1], *[[nan]] * 7],
)
_(
    "missing, dropped",
    "a,b\n1,2\n,4\n5,6\n",
    'features = "*"\nmissing = "drop"',
    [[1, 2], [5, 6]],
)
_(
    "missing in a column that is not used",
    "a,b\n1,2\n3,\n",
    'features = ["a"]\nmissing = "drop"',
    [[1], [3]],
)
_(
    "missing, filled",
    "a,b\n1,2\n,4\n",
    'features = "*"\nmissing = { fill = 0 }',
    [[1, 2], [0, 4]],
)
_(
    "missing, filled by the mean",
    "a,b\n1,2\n,4\n3,9\n",
    'features = "*"\nmissing = { fill = "mean" }',
    [[1, 2], [2, 4], [3, 9]],
)
_(
    "missing, filled by the median",
    "a\n1\nNA\n100\n3\n",
    'features = "*"\nmissing = { fill = "median" }',
    [[1], [3], [100], [3]],
)
_(
    "missing, filled by column",
    "a,b\n,2\n1,\n",
    'features = "*"\nmissing = { fill = { a = 7, b = 8 } }',
    [[7, 2], [1, 8]],
)
_(
    "own marks for missing",
    "a,b\n1,?\n-999,4\n",
    'features = "*"\nmissing = "nan"\nmissing_values = ["?", -999]',
    [[1, nan], [nan, 4]],
)
_(
    "own marks, dropped",
    "a,b\n1,k.A.\n3,4\n",
    'features = "*"\nmissing = "drop"\nmissing_values = ["k.A."]',
    [[3, 4]],
)
no(
    "own marks, refused",
    "a,b\n1,?\n",
    'features = "*"\nmissing_values = ["?"]',
    "row 1",
)
no("NaN in integers", "a\n1\nNA\n", 'features = "*"\ndtype = "int64"', "row 2")
_(
    "a fill in integers",
    "a\n1\nNA\n",
    'features = "*"\ndtype = "int64"\nmissing = { fill = -1 }',
    [[1], [-1]],
    dtypes={"features": "int64"},
)
no(
    "a target without a value",
    "a,y\n1,u\n2,\n",
    'features = ["a"]\ntarget = "y"\nclasses = ["u", "v"]',
    "row 2",
)
_(
    "a target without a value, dropped",
    "a,y\n1,u\n2,\n3,v\n",
    'features = ["a"]\ntarget = "y"\nclasses = ["u", "v"]\nmissing = "drop"',
    [[1], [3]],
    target=[0, 1],
    dtypes={"target": "int64"},
)
_(
    "one column with blank lines",
    "a\n1\n\n3\n",
    'features = "*"\nmissing = "nan"',
    [[1], [nan], [3]],
)

# --- encodings --------------------------------------------------------------------

_(
    "Latin-1",
    "größe,a\n1,2\n".encode("latin-1"),
    'features = ["größe"]\nencoding = "latin-1"',
    [[1]],
)
_(
    "Windows",
    "name,a\nM\u00fcller \u20ac,2\n".encode("cp1252"),
    'features = ["a"]\nencoding = "cp1252"',
    [[2]],
)
no("not UTF-8", "größe,a\n1,2\n".encode("latin-1"), 'features = "*"', "encoding")
_("UTF-16 with its mark", "a,b\n1,2\n".encode("utf-16"), 'features = "*"', [[1, 2]])
no("an unknown encoding", "a\n1\n", 'features = "*"\nencoding = "utf-9"', "encoding")
_("gzip", gzip.compress(b"a,b\n1,2\n"), 'features = "*"', [[1, 2]], file="d.csv.gz")
_("bzip2", bz2.compress(b"a,b\n1,2\n"), 'features = "*"', [[1, 2]], file="d.csv.bz2")
_("xz", lzma.compress(b"a,b\n1,2\n"), 'features = "*"', [[1, 2]], file="d.csv.xz")
_("zip", zipped(d="a,b\n1,2\n"), 'features = "*"', [[1, 2]], file="d.csv.zip")
no(
    "a zip of two files",
    zipped(c="a\n1\n", d="a\n1\n"),
    'features = "*"',
    "zip",
    file="d.csv.zip",
)
no(
    "gzip that is cut off",
    gzip.compress(b"a,b\n" + b"1,2\n" * 10_000)[:-20],
    'features = "*"',
    "d.csv.gz",
    file="d.csv.gz",
)
no("gzip that is none", "a,b\n1,2\n", 'features = "*"', "d.csv.gz", file="d.csv.gz")
_(
    "newlines in quotes",
    'note,a\n"first\nsecond",1\n"x",2\n',
    'features = ["a"]',
    [[1], [2]],
)
no(
    "newlines in quotes, and an error below",
    'note,a\n"first\nsecond",1\n"x",z\n',
    'features = ["a"]',
    "row 2 (line 4)",
)
_("quotes in quotes", 'note,a\n"he said ""no""",1\n', 'features = ["a"]', [[1]])
no("zeros among the bytes", "a,b\n1,\x002\n", 'features = "*"', "bytes of zero")

# --- categories, words, dates -----------------------------------------------------

no("texts", "sex,a\nf,1\nm,2\n", 'features = "*"', "encode")
_(
    "codes",
    "sex,a\nf,1\nm,2\n",
    'features = "*"\nencode = { sex = ["m", "f"] }',
    [[1, 1], [0, 2]],
)
_(
    "codes in the order that is told",
    "g\nlow\nhigh\n",
    'features = "*"\nencode = { g = ["high", "low"] }',
    [[1], [0]],
)
no(
    "a text that is no category",
    "g\nlow\nmid\n",
    'features = "*"\nencode = { g = ["high", "low"] }',
    'row 2 (line 3), column "g"',
)
_(
    "one-hot",
    "g,a\nlow,5\nhigh,6\n",
    'features = "*"\nencode = { g = { one_hot = ["low", "high"] } }',
    [[1, 0, 5], [0, 1, 6]],
)
_(
    "codes of numbers",
    "g\n3\n1\n",
    'features = "*"\nencode = { g = [1, 2, 3] }',
    [[2], [0]],
)
_(
    "words",
    "s\nyes\nno\nTRUE\nfalse\n",
    'features = "*"\nencode = { s = "boolean" }',
    [[1], [0], [1], [0]],
)
_("letters", "s\ny\nn\n", 'features = "*"\nencode = { s = "boolean" }', [[1], [0]])
no(
    "a word that is none",
    "s\nyes\nmaybe\n",
    'features = "*"\nencode = { s = "boolean" }',
    "row 2",
)
_(
    "a missing category",
    "g\nlow\nNA\n",
    'features = "*"\nencode = { g = ["low", "high"] }\nmissing = "nan"',
    [[0], [nan]],
)
_(
    "classes",
    "a,y\n1,malign\n2,benign\n",
    'features = ["a"]\ntarget = "y"\nclasses = ["benign", "malign"]',
    [[1], [2]],
    target=[1, 0],
    dtypes={"target": "int64"},
)
_(
    "classes of numbers",
    "a,y\n1,2\n2,4\n",
    'features = ["a"]\ntarget = "y"\nclasses = [2, 4]',
    [[1], [2]],
    target=[0, 1],
    dtypes={"target": "int64"},
)
no(
    "a text that is no class",
    "a,y\n1,x\n",
    'features = ["a"]\ntarget = "y"\nclasses = ["u"]',
    'row 1 (line 2), column "y"',
)
_(
    "days",
    "d\n1970-01-02\n2024-01-05\n",
    'features = "*"\nencode = { d = "days" }',
    [[1], [19727]],
)
_(
    "days since a day",
    "d\n05.01.2024\n",
    'features = "*"\nencode = { d = { days = "%d.%m.%Y", since = 2024-01-01 } }',
    [[4]],
)
_(
    "parts of dates",
    "d,a\n2024-03-05,9\n",
    'features = "*"\nencode = { d = "parts" }',
    [[2024, 3, 5, 9]],
)
no(
    "a date that is none",
    "d\n2024-01-05\n2024-02-30\n",
    'features = "*"\nencode = { d = "days" }',
    "row 2",
)
no("dates, not told", "d\n2024-01-05\n", 'features = "*"', "days")
no(
    "encode of a column that is not there",
    "a\n1\n",
    'features = "*"\nencode = { b = "boolean" }',
    "b",
)

no(
    "dates of German writing, not told",
    "d\n05.01.2024\n",
    'features = "*"',
    'days = "%d.%m.%Y"',
)
no(
    "a line that names the delimiter",
    "sep=;\na;b\n1;2\n",
    'features = "*"',
    'skip = 1 and delimiter = ";"',
)
_(
    "a line that names the delimiter, passed over",
    "sep=;\na;b\n1;2\n",
    'features = "*"\nskip = 1\ndelimiter = ";"',
    [[1, 2]],
)

# --- rows, parts of the file, several tensors -------------------------------------

_(
    "a condition",
    "year,a\n2019,1\n2020,2\n2021,3\n",
    'features = ["a"]\nwhere = "year >= 2020"',
    [[2], [3]],
)
_(
    "a condition on text",
    "sex,a\nf,1\nm,2\n",
    'features = ["a"]\nwhere = "sex == \'f\'"',
    [[1]],
)
_(
    "conditions",
    "sex,a\nf,1\nm,2\nf,30\n",
    'features = ["a"]\nwhere = "sex == \'f\' and not (a > 10)"',
    [[1]],
)
no("a condition on nothing", "a\n1\n", 'features = "*"\nwhere = "b > 1"', "where")
no("a condition that is none", "a\n1\n", 'features = "*"\nwhere = "a >> 1"', "where")
no("a condition that nothing meets", "a\n1\n", 'features = "*"\nwhere = "a > 1"', "row")
_("columns left out", "id,a,b\nx1,1,2\n", 'features = "*"\nexclude = ["id"]', [[1, 2]])
no(
    "a column left out that is not there",
    "a\n1\n",
    'features = "*"\nexclude = ["ab"]',
    "ab",
)
_(
    "several tensors",
    "a,b,c,y\n1,2,3,4\n",
    'features = { u = ["a", "b"], v = "c" }\ntarget = "y"',
    d__u=[[1, 2]],
    d__v=[3],
    target=[4],
)
_(
    "types by tensor",
    "a,b\n1,2\n",
    'features = { u = ["a"], v = ["b"] }\ndtype = { u = "float64", v = "int64" }',
    d__u=[[1]],
    d__v=[[2]],
    dtypes={"u": "float64", "v": "int64"},
)
_(
    "a folder of parts",
    {"p/1.csv": "a,b\n1,2\n", "p/2.csv": "a,b\n3,4\n", "p/10.csv": "b,a\n6,5\n"},
    'path = "p"\nformat = "csv"\nfeatures = "*"',
    [[1, 2], [3, 4], [5, 6]],
)
_(
    "a pattern of parts",
    {"p-1.csv": "a\n1\n", "p-2.csv": "a\n2\n", "q.csv": "a\n3\n"},
    'path = "p-*.csv"\nfeatures = "*"',
    [[1], [2]],
)
no(
    "parts of other columns",
    {"p-1.csv": "a,b\n1,2\n", "p-2.csv": "a,c\n1,2\n"},
    'path = "p-*.csv"\nfeatures = "*"',
    "p-2.csv",
)
no(
    "an error in a part",
    {"p-1.csv": "a\n1\n", "p-2.csv": "a\nx\n"},
    'path = "p-*.csv"\nfeatures = "*"',
    "p-2.csv",
)
no(
    "a pattern that nothing matches",
    {"a.csv": "a\n1\n"},
    'path = "b-*.csv"\nfeatures = "*"',
    "b-*.csv",
)
no(
    "no such file",
    {"a.csv": "a\n1\n"},
    'path = "b.csv"\nfeatures = "*"',
    "no such file",
)

# --- as a spreadsheet writes it ---------------------------------------------------

_(
    "a clinic's export",
    "Patient;Geschlecht;Alter;Größe;Aufnahme;Raucher;Befund\r\n"
    "0017;w;54;1,68;05.01.2024;ja;benigne\r\n"
    "0018;m;k.A.;1,81;17.03.2024;nein;maligne\r\n"
    "0019;w;61;k.A.;22.12.2023;nein;benigne\r\n;;;;;;\r\n".encode("cp1252"),
    'encoding = "cp1252"\ndelimiter = ";"\ndecimal = ","\nfeatures = "*"\n'
    'exclude = ["Patient"]\ntarget = "Befund"\nclasses = ["benigne", "maligne"]\n'
    'missing_values = ["k.A."]\nmissing = "nan"\nencode = { Geschlecht = ["m", "w"], '
    'Raucher = "boolean", Aufnahme = { days = "%d.%m.%Y", since = 2023-01-01 } }',
    [[1, 54, 1.68, 369, 1], [0, nan, 1.81, 441, 0], [1, 61, nan, 355, 0]],
    target=[0, 1, 0],
    dtypes={"target": "int64"},
)
