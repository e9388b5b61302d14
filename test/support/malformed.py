"""The corpus of malformed inputs: datasets, landmarks and evaluation configs, and what each program has to say of them."""

import gzip
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHAPE = (9, 8, 10)
FIXED, MOVING, FIELD = "T_0001_0000", "T_0001_0001", "disp_0001_0000_0001_0001"
PAIR = {"fixed": f"imagesTr/{FIXED}.nii.gz", "moving": f"imagesTr/{MOVING}.nii.gz"}
ESCAPES = "\x1b[31m\x07\u202e"

OUTSIDE, SHORT, CLAIM = "expected a path inside the dataset's folder", "header claims", "more than a"
WHOLE, NO_PATH, NO_NIFTI = "expected a whole NIfTI image", "expected the path of an image", "it is not NIfTI"
NO_IMAGE, NO_JSON, NO_PAIRS = "expected a 3D image", "cannot be read", "expected pairs under registration_val"


@dataclass(frozen=True)
class Sample:
    """A malformed input.

    Attributes:
        name: of the sample.
        kind: which front doors it goes through: ``json``, ``image``, ``field``, ``csv`` or ``config``.
        build: makes it under a path, whose folder is there, with everything around it as it should be.
        method, judge: what the method and the judge have to say; None where it is none of their business.
        suffix: of the file.
    """

    name: str
    kind: str
    build: Callable[[Path], object]
    method: str | None
    judge: str | None
    suffix: str = ""


def bytes_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def text_of(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode("utf-8", "surrogatepass"))


def json_of(content: object) -> Callable[[Path], object]:
    return text_of(json.dumps(content))


def sparse(size: int) -> Callable[[Path], object]:
    """A file of any size that takes no room."""

    return with_hole(b"", size)


def with_hole(data: bytes, size: int = 2**40) -> Callable[[Path], object]:
    """Bytes, and nothing up to that size behind them."""

    def build(path: Path) -> None:
        path.write_bytes(data)
        os.truncate(path, size)

    return build


def dataset_of(fixed: object, name: object = "ReMIND2Reg") -> Callable[[Path], object]:
    return json_of({"name": name, "registration_val": [{"fixed": fixed, "moving": PAIR["moving"]}]})


def json_samples() -> Iterator[Sample]:
    """Datasets that are no JSON, or not such a JSON."""
    listed: object
    value: object
    unreadable: dict[str, bytes] = {
        "a brace": b"{", "a bracket": b"[", "closed before opened": b"]", "a word": b"nul", "two objects": b"{}{}",
        "a comma too many": b'{"a": 1,}', "single quotes": b"{'a': 1}", "a comment": b'{"a": 1} // one',
        "only a mark": b"\xef\xbb\xbf",
        "spaces": b"  \n ", "utf-16": '{"a": 1}'.encode("utf-16"), "utf-16-be": '{"a": 1}'.encode("utf-16-be"),
        "utf-32": '{"a": 1}'.encode("utf-32"), "latin-1": '{"ä": 1}'.encode("latin-1"), "half a character": b'{"\xc3',
        "NUL": b"\0" * 40, "NUL behind": b"{}\0", "cut": json.dumps({"registration_val": [PAIR]}).encode()[:40],
        "digits": b'{"a": ' + b"9" * 5000 + b"}", "control characters": b'{"a\x01": 1}', "half an escape": b'{"a": "\\u12"}',
        "no such escape": b'{"a": "\\x41"}', "hexadecimal": b'{"a": 0x10}', "a leading zero": b'{"a": 01}',
        "gzip": gzip.compress(b"{}"),
        "a key without value": b'{"a"}', "no colon": b'{"a" 1}', "an open text": b'{"a": "b', "yaml": b"name: T\n",
        "html": b"<html>",
    }  # fmt: skip
    for name, data in unreadable.items():
        yield Sample(name, "json", bytes_of(data), NO_JSON, NO_JSON)
    for name, data in {"null": b"null", "true": b"true", "number": b"3", "text": b'"x"', "list": b"[]", "NaN": b"NaN"}.items():
        yield Sample(f"json {name}", "json", bytes_of(data), "expected a JSON object", "expected a JSON object")
    yield Sample("nothing", "json", bytes_of(b""), "found an empty file", "found an empty file")
    deep = "levels of brackets, found more"
    for count in (51, 900, 100_000):
        yield Sample(f"{count} lists", "json", bytes_of(b'{"a":' + b"[" * count + b"]" * count + b"}"), deep, deep)
        yield Sample(f"{count} objects", "json", bytes_of(b'{"a":' * count + b"1" + b"}" * count), deep, deep)
    size = "of at most 8388608 bytes, found 8388609"
    yield Sample("8 MiB and 1", "json", sparse(2**23 + 1), size, size)
    yield Sample("a TiB", "json", sparse(2**40), "found 1099511627776", "found 1099511627776")
    yield Sample("8 MiB of lists", "json", bytes_of(b'{"a":[' + b"[]," * 2_700_000 + b"1]}"), NO_PAIRS, NO_PAIRS)
    many = bytes_of(b'{"registration_val":[' + b"[]," * 2_700_000 + b"1]}")
    yield Sample("8 MiB of pairs", "json", many, "expected registration_val to be a list of", "expected pairs {")
    keys = json.dumps({f"{i}": 0 for i in range(600_000)})[:-1] + ', "599999": 1}'
    yield Sample("many keys, the last twice", "json", text_of(keys), "stands twice", "stands twice")
    for key in ("name", "registration_val", "x\x1b[2J"):
        twice = f"{{{json.dumps(key)}: [], {json.dumps(key)}: []}}"
        yield Sample(f"twice {key!r}", "json", text_of(twice), "stands twice", "stands twice")
    inner = f'{{"registration_val": [{{"fixed": "a", "fixed": "b", "moving": "{MOVING}.nii"}}]}}'
    yield Sample("a role twice", "json", text_of(inner), "the key 'fixed' stands twice", "the key 'fixed' stands twice")
    for name, listed in {"none": None, "empty": [], "empty object": {}, "zero": 0, "empty text": "", "false": False}.items():
        yield Sample(f"pairs {name}", "json", json_of({"registration_val": listed}), NO_PAIRS, NO_PAIRS)
    for name, listed in {
        "number": 3, "text": "ab", "true": True, "object": {"a": 1}, "numbers": [3], "lists": [[1, 2]], "null": [None],
        "objects": [{}], "one role": [{"fixed": PAIR["fixed"]}], "texts": ["fixed", "moving"], "deep": [[[[[[[[PAIR]]]]]]]],
    }.items():  # fmt: skip
        content = {"name": "ReMIND2Reg", "registration_val": listed}
        yield Sample(f"pairs {name}", "json", json_of(content), "expected registration_val to be a list of", "expected pairs {")
    for name, value in {
        "number": 3,
        "null": None,
        "list": [PAIR["fixed"]],
        "object": {"a": "b"},
        "true": True,
        "big": 10**30,
    }.items():
        yield Sample(f"path {name}", "json", dataset_of(value), "['fixed'] is missing or of another kind", NO_PATH)
    for name, value in {"list": [], "number": 3, "object": {"a": 1}, "long": "x" * 5000}.items():
        yield Sample(
            f"name {name}", "json", dataset_of(PAIR["fixed"], name=value), "expected 'name' to be text of at most", None
        )
    for name, value in {
        "script": "<script>alert(1)</script>",
        "escapes": ESCAPES,
        "surrogate": "\ud800",
        "other": "Brains",
    }.items():
        yield Sample(f"task {name}", "json", dataset_of(PAIR["fixed"], name=value), "is not known: expected one of", None)
    yield Sample(
        "a split that is elsewhere", "json", json_of({"registration_test": [PAIR]}), "pairs for --split test", NO_PAIRS
    )


def path_samples() -> Iterator[Sample]:
    """Paths that lead out, or cannot be paths."""
    image = f"{FIXED}.nii.gz"
    for text in (
        f"../{image}", f"imagesTr/../../{image}", f"/etc/{image}", f"//{image}", f"/proc/self/fd/0/{image}",
        f"imagesTr/../../../../{image}",
        f"./../{image}", f"/tmp/../{image}", f"../../../../../../../../../{image}", f"/dev/{image}",
    ):  # fmt: skip
        yield Sample(f"to {text}", "json", dataset_of(text), OUTSIDE, OUTSIDE)
    for name, text in {
        "NUL": f"imagesTr/{image}\0", "NUL first": "\0", "a line end": f"imagesTr/\n{image}",
        "colors": f"imagesTr/{ESCAPES}{image}",
        "a tab": f"\t{image}", "half a pair": f"imagesTr/\ud800{image}", "a bell": f"\a{image}",
        "from right to left": f"\u202e{image}",
        "no break": f"\u2028{image}", "a long name": "x" * 300 + image, "a long path": "x/" * 3000 + image,
        "a huge path": "x" * 10**6,
    }.items():  # fmt: skip
        yield Sample(f"path with {name}", "json", dataset_of(text), NO_PATH, NO_PATH)
    for text in (
        "x", "T_001_0000.nii.gz", "T_0001_0000.mha", "T_0001_0000.nii.gz.bak", "T_0001.nii.gz", "_0001_0000.nii.gz",
        "T_٠٠٠١_0000.nii.gz",
        "T_0001_0000", "T_0001_0000.nii.gz/x", "~", "*", "T_-001_0000.nii.gz", "T_0001_00000.nii.gz", "T__.nii.gz",
    ):  # fmt: skip
        yield Sample(f"name {text}", "json", dataset_of(text), "expected a file name like", "expected a file name like")
    for text in (
        "$(touch x)",
        "`touch x`",
        "a;touch x",
        "a|touch x",
        "<script>",
        "'\"",
        "%s%n",
        "a b",
        "-rf",
        "--output",
        "{0}",
    ):
        spelled = f"imagesTr/{text}_0001_0000.nii.gz"
        yield Sample(f"missing {text}", "json", dataset_of(spelled), "no such file", "No such file")

    def linked(target: str, at: str = PAIR["fixed"], entry: str = PAIR["fixed"]) -> Callable[[Path], object]:
        def build(path: Path) -> None:
            link = path.parent / at
            link.parent.mkdir(exist_ok=True)
            if link.is_dir():
                link.rename(path.parent / "elsewhere")
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            dataset_of(entry)(path)

        return build

    for target in ("/etc/hostname", "/dev/zero", "../../out", "/", "/proc/self/mem"):
        yield Sample(f"link to {target}", "json", linked(target), OUTSIDE, OUTSIDE)
    for target in ("/etc", "..", "/proc/self/root"):
        where = "imagesTr" if target != ".." else "imagesTr/sub"
        spelled = f"{where}/../../x/{image}" if target == ".." else f"{where}/{image}"
        yield Sample(f"folder link to {target}", "json", linked(target, where, spelled), OUTSIDE, OUTSIDE)
    yield Sample("link to itself", "json", linked(image), "expected", "expected")
    yield Sample("link to nothing", "json", linked("absent.nii.gz"), "no such file", "No such file")
    for kind, expected in {"json": "a dataset JSON", "image": "a NIfTI image"}.items():
        for name, make, found in (
            ("pipe", os.mkfifo, "found a named pipe"),
            ("folder", os.mkdir, "found a folder"),
            ("socket", lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)), "a socket"),
            ("device", lambda path: path.symlink_to("/dev/zero"), "a device"),
        ):
            judge = OUTSIDE if (kind, name) == ("image", "device") else found
            if (kind, name) != ("json", "folder"):  # a folder is a data set, too
                yield Sample(
                    f"{kind} {name}", kind, make, f"expected {expected}, found" if name == "device" else found, judge, ".nii.gz"
                )


def csv_samples() -> Iterator[Sample]:
    """Landmarks that are none."""
    numbers = "expected three numbers a line, found"
    for text in (
        "x,y,q\n1,2,3\n", "1,2\n", "1,2,3,4\n", "1\n", "1 2 3\n", "1\t2\t3\n", "1|2|3\n", "1,2,3\n\n1,2,3\n", "nan,1,2\n",
        "1,inf,2\n", "1,-Infinity,2\n", "1,2,\n",
        ",,\n", "a,b,c\n", "1_0,2,3\n", "0x1,2,3\n", "1,2,3 # one\n", "١,2,3\n", "'1',2,3\n", '"1","2","3"\n', "1,2,1+2j\n",
        "1,2,=1+1\n", "1,2,3\n<script>\n", "1,2,\x1b[2J\n",
        "1,2,True\n", "1,,2,3\n", "1.2.3,1,2\n", "--1,2,3\n", "1,2,3\0\n", "1,2," + "9" * 5000 + "\n", "1e99999,2,3\n",
        "x" * 10**6, "1,2,3\u20284,5\n", "1,2,3\x0b\x0b4,5,6\n", "½,1,2\n",
    ):  # fmt: skip
        yield Sample(f"csv {text[:30]!r}", "csv", text_of(text), None, numbers)
    for text in ("1,2,99\n", "-1,2,3\n", "1,2,3\n8.6,1,1\n"):
        yield Sample(f"csv {text!r}", "csv", text_of(text), None, "expected points inside the volume of 9×8×10 voxels")
    for text in ("1e30,2,3\n", "1,2,-1e300\n", "1e400,1,1\n"):
        yield Sample(f"csv {text!r}, far away", "csv", text_of(text), None, "expected coordinates of at most 1e+06 voxels")
    yield Sample("csv of semicolons", "csv", text_of("1;2;3\n"), None, "found semicolons")
    yield Sample("csv of commas as points", "csv", text_of("1,5;2,5;3,5\n"), None, "found semicolons")
    for name, data in {"nothing": b"", "line ends": b"\n\n\n", "a mark": b"\xef\xbb\xbf"}.items():
        yield Sample(f"csv of {name}", "csv", bytes_of(data), None, "expected landmarks, found an empty file")
    for name, data in {
        "utf-16": "1,2,3\n".encode("utf-16"),
        "latin-1": b"\xb5,1,2",
        "png": b"\x89PNG",
        "gzip": gzip.compress(b"1,2,3"),
    }.items():
        yield Sample(f"csv in {name}", "csv", bytes_of(data), None, "expected landmarks, but the file cannot be read")
    yield Sample("csv of another number of points", "csv", text_of("1,2,3\n1,2,4\n1,2,5\n"), None, "expected as many points as")
    yield Sample("csv too large", "csv", sparse(2**34), None, "of at most 8388608 bytes")
    yield Sample("csv that is a folder", "csv", os.mkdir, None, "expected landmarks, found a folder")
    yield Sample("csv that is a pipe", "csv", os.mkfifo, None, "expected landmarks, found a named pipe")
    yield Sample("csv elsewhere", "csv", lambda path: path.symlink_to("/etc/passwd"), None, OUTSIDE)


def config_samples() -> Iterator[Sample]:
    """Official evaluation configs that are none."""
    methods = "expected evaluation methods with a metric out of"
    entries: dict[str, object] = {
        "number": 3, "null": None, "list": ["tre"], "empty": {}, "unknown": {"metric": "best"},
        "list as metric": {"metric": ["tre"]}, "object as metric": {"metric": {}},
        "folder": {"metric": "tre", "dest": "../../etc"}, "absolute": {"metric": "tre", "dest": "/etc"},
        "number as folder": {"metric": "tre", "dest": 3},
        "NUL": {"metric": "tre", "dest": "a\0"}, "no folder": {"metric": "tre", "dest": ""},
        "name": {"metric": "tre", "name": [1]}, "long name": {"metric": "tre", "name": "x" * 999},
        "label": {"metric": "dice", "labels": ["a"]}, "endless label": {"metric": "dice", "labels": [float("inf")]},
        "NaN as label": {"metric": "dice", "labels": [float("nan")]},
        "huge label": {"metric": "dice", "labels": [10**40]}, "labels": {"metric": "dice", "labels": "123"},
        "label below 0": {"metric": "hd95", "labels": [-1]}, "true": {"metric": "hd95", "labels": [True]},
    }  # fmt: skip
    for name, entry in entries.items():
        yield Sample(f"config {name}", "config", json_of({"evaluation_methods": [entry]}), None, methods)
    listed = "expected a list under evaluation_methods"
    value: object
    for name, value in {"none": None, "empty": [], "text": "tre", "object": {"metric": "tre"}, "number": 3}.items():
        yield Sample(f"config methods {name}", "config", json_of({"evaluation_methods": value}), None, listed)
    tre = {"metric": "tre"}
    yield Sample("config twice", "config", json_of({"evaluation_methods": [tre, tre]}), None, "with different names")
    for name, pairs, found in (
        ("number", 3, "expected pairs {"),
        ("away", [{"fixed": "../../x", "moving": "y"}], OUTSIDE),
        ("texts", ["a"], "expected pairs {"),
    ):
        yield Sample(f"config pairs {name}", "config", json_of({"evaluation_methods": [tre], "eval_pairs": pairs}), None, found)
    yield Sample("config no json", "config", bytes_of(b"{"), None, "expected a JSON file")
