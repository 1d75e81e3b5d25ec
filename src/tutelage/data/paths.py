"""What people give as data, as files of lines: files of many kinds, folders, patterns, saved data sets."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from tutelage.data.cache import DEFAULT_DIR
from tutelage.data.opened import COMPRESSED, LONGEST_LINE, open_bytes
from tutelage.data.saved import NO_SPLIT, is_data_set, written_rows
from tutelage.data.shapes import SHAPES
from tutelage.data.tables import TABLES, written_out
from tutelage.errors import UserError

FORMS = {  # how a file may be read -> the suffixes that say so
    "jsonl": (".jsonl", ".ndjson"),
    "text": (".txt",),
    "document": (),
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "json": (".json",),
}
ALL = "all"  # the word for every split of a folder
_SUFFIXES = {suffix: form for form, suffixes in FORMS.items() for suffix in suffixes}
KNOWN = (
    "give jsonl:, text:, document:, parquet:, csv: or json:PATH, or a path that ends in "
    f"{', '.join(_SUFFIXES)}, or in one of these and .gz or .zst"
)
_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./\d]|$)", re.IGNORECASE)
_SAME = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
_HOLD_ROWS = ("data", "rows", "train", "examples")  # keys under which files that are one object have them
_OWN_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # no data


@dataclass(frozen=True, slots=True)
class File:
    """A file of lines, and what people call it."""

    path: Path
    form: str  # jsonl, text or document; before it is written out also parquet, csv, json
    name: str  # of where its lines come from
    by_rows: bool = False  # whether line n is row n there, and no line

    @property
    def is_lines(self) -> bool:
        """Whether it can be read from any place as it is."""
        return self.form not in TABLES and not self.path.name.lower().endswith(COMPRESSED)


@dataclass(frozen=True, slots=True)
class DataPath:
    """One of the paths of a data set."""

    given: str
    files: tuple[File, ...]
    shape: str | None = None  # of its records; None: to be recognised
    fields: tuple[tuple[str, str], ...] = ()  # other names for keys of its records
    shapes_flag: str = "--train_data_shapes"  # which says its shape

    def __str__(self) -> str:
        return self.given


def find_data(
    paths: Sequence[str],
    splits: Sequence[str],
    *,
    shapes: Sequence[str] = (),
    fields: Sequence[str] = (),
    streaming: bool = False,
    cache_dir: Path | None = None,
    log: Callable[[str], None],
    flag: str,
) -> list[DataPath]:
    """The paths as files of lines; what is none is written out in the cache, but for `streaming`.

    `splits` and `shapes` say one thing of each path, `-` where there is nothing to say; `flag` is the flag
    that the splits come from. `fields` are `OLD=NEW` names of keys.
    """
    shapes_flag = flag.replace("splits", "shapes")
    named, said = one_each(splits, paths, flag), one_each(shapes, paths, shapes_flag)
    for shape in said:
        if shape not in (*SHAPES, NO_SPLIT):
            raise UserError(f"{shapes_flag}: {shape} is none of {', '.join(SHAPES)}")
    names, place = field_names(fields), (cache_dir or DEFAULT_DIR).expanduser()
    found = []
    for given, split, shape in zip(paths, named, said, strict=True):
        if is_data_set(given):
            written = written_rows(given, split, place, log, flag)
            data = DataPath(given, (File(written, "jsonl", given, True),))
        else:
            data = files_of(given, split, flag)
            for file in data.files:
                _refuse_object(file)
            if not streaming:
                lines = (_as_lines(file, place, log) for file in data.files)
                data = replace(data, files=tuple(lines))
        shape = None if shape == NO_SPLIT else shape
        found.append(replace(data, shape=shape, fields=names, shapes_flag=shapes_flag))
    return found


def files_of(
    given: str,
    split: str = NO_SPLIT,
    flag: str = "--train_data_splits",
    *,
    forms: Collection[str] = tuple(FORMS),
) -> DataPath:
    """The files that a path names: itself, those of a folder or those that a pattern fits, in order.

    Of a folder only those are taken that are read in one of `forms`."""
    if given.startswith(("encoded:", "shards:")) or (Path(given) / "encoded.json").is_file():
        raise UserError(
            f"{given} holds tokens, and text or records are read here; encoded: is for sft, dpo, simpo, "
            "reward and data show, shards: for pretrain"
        )
    form, colon, rest = given.partition(":")
    if not colon or form not in FORMS:
        form, rest = "", given
    path = Path(rest).expanduser()
    several = path.is_dir() or (not path.exists() and glob.has_magic(str(path)))
    if not several and split != NO_SPLIT:
        raise UserError(f"{flag}: {given} is a file and has no split {split}; write {NO_SPLIT} for it")
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file, path))
    else:
        inside = _fitting(path) if several else [path]
    if path.is_dir():
        wanted = (form,) if form else forms
        inside = [file for file in inside if form_of(file) in wanted or form == "document"]
        if not inside:
            ends = ", ".join(suffix for each in wanted for suffix in FORMS[each])
            raise UserError(f"{path} holds no file that ends in {ends}")
    if several:
        inside = _of_split(inside, path, split, flag)
    kinds = {form or form_of(file) for file in inside}
    if several and "" in kinds:
        odd = next(file for file in inside if not form_of(file))
        raise UserError(
            f"{path} fits {odd}, whose name does not say how to read it; give a narrower pattern, such as "
            f"{path.with_name('*.jsonl')}, or say it for all with text:{rest} or another word"
        )
    if several and len(kinds) > 1:
        raise UserError(
            f"{path} has files of several kinds; give {' or '.join(f'{k}:{rest}' for k in sorted(kinds))}"
        )
    return DataPath(given, tuple(_checked(file, form, given) for file in inside))


def _fitting(pattern: Path) -> list[Path]:
    """The files that a pattern fits, in order."""
    fitting = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
    files = [place for place in fitting if place.is_file()]
    if not files:
        folders = f", only folders, such as {fitting[0]}; give one of them" if fitting else ""
        raise UserError(f"no file fits {pattern}{folders}")
    return files


def form_of(path: Path) -> str:
    """How a file of this name is read; "" where it does not say."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1], "") if suffixes else ""


def field_names(fields: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`OLD=NEW` words as pairs; refuses what is none, and two that contradict each other."""
    pairs = []
    for word in fields:
        old, equals, new = word.partition("=")
        if not (old and equals and new):
            raise UserError(f"data_fields: {word!r} is not OLD=NEW, such as question=instruction")
        pairs.append((old, new))
    for names in zip(*pairs, strict=True):
        if doubled := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"data_fields has {doubled.pop()} twice on one side; a name can stand for one other"
            )
    return tuple(pairs)


def one_each(values: Sequence[str], paths: Sequence[str], flag: str) -> Sequence[str]:
    """A value for each path, `-` where nothing is said."""
    if values and len(values) != len(paths):
        raise UserError(f"{flag} has {len(values)} values for {len(paths)} paths; give one each, - for none")
    return values or [NO_SPLIT] * len(paths)


def _is_data(file: Path, folder: Path) -> bool:
    inside = file.relative_to(folder).parts
    return not any(part.startswith((".", "_")) for part in inside) and file.name not in _OWN_FILES


def _of_split(files: list[Path], folder: Path, split: str, flag: str) -> list[Path]:
    """The files of a folder whose names have the split in them; of several splits one must be chosen."""
    base = folder if folder.is_dir() else Path(*folder.parts[:-1])
    named = {file: _split_of(file, base) for file in files}
    splits = sorted({name for name in named.values() if name})
    if split == NO_SPLIT and len(splits) > 1:
        raise UserError(f"{folder} has files of the splits {', '.join(splits)}; choose with {flag}, or {ALL}")
    if split in (NO_SPLIT, ALL):
        return files
    wanted = _SAME.get(split, split)
    chosen = [file for file, name in named.items() if name == wanted]
    if not chosen:
        had = f"those of {', '.join(splits)}" if splits else "none that names a split"
        raise UserError(f"{folder} has no file of the split {split}, only {had}")
    return chosen


def _split_of(file: Path, base: Path) -> str | None:
    name = str(file.relative_to(base)) if file.is_relative_to(base) else file.name
    found = _SPLIT.search(name)
    return _SAME.get(found[1].lower(), found[1].lower()) if found else None


def _checked(path: Path, form: str, given: str) -> File:
    """The file, if it can be read and is what its name says."""
    form = form or form_of(path)
    if not form:
        raise UserError(f"cannot tell how to read {given!r}; {KNOWN}")
    if not path.exists():
        raise UserError(f"{path} does not exist{_nearest(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for magic, (what, suits) in MAGICS.items():
        if start.startswith(magic) and form != suits and not path.name.lower().endswith(suits):
            raise UserError(f"{path} is {what}")
    if form == "json" and _begin(path, 1 << 12).startswith(b"{"):
        form = "jsonl"
    return File(path, form, str(path))


MAGICS = {  # first bytes -> what the file is, and the form or suffix under which that is as it should be
    b"\xff\xfe": ("UTF-16 text; save it as UTF-8", "-"),
    b"\xfe\xff": ("UTF-16 text; save it as UTF-8", "-"),
    b"\x1f\x8b": ("gzip-compressed; give it a name that ends in .gz, or unpack it", ".gz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed; give it a name that ends in .zst, or unpack it", ".zst"),
    b"PK\x03\x04": ("a zip archive; unpack it first", "-"),
    b"PAR1": ("a parquet file; give parquet:PATH", "parquet"),
}


def _begin(path: Path, longest: int) -> bytes:
    """The first two lines of a file that are not blank, if they are not longer; b"" if it cannot be read."""
    with suppress(OSError, EOFError, ValueError), open_bytes(path) as file:  # which reading names
        lines = (line.strip() for line in iter(lambda: file.readline(longest), b""))
        return b"\n".join(islice(filter(None, lines), 2)).removeprefix(b"\xef\xbb\xbf").lstrip()
    return b""


def _refuse_object(file: File) -> None:
    """Refuse a .json file that is one object, and neither an array nor one object a line, as many are."""
    if file.form != "jsonl" or form_of(file.path) != "json":
        return
    first, _, second = _begin(file.path, LONGEST_LINE).partition(b"\n")
    if second and not first.endswith(b"}") and not second.startswith(b"{"):
        raise UserError(
            f"{file.name} is one object over several lines; give a file of the array that is in it, or "
            "write one object a line"
        )
    held = []
    with suppress(ValueError, RecursionError, AttributeError):
        held = [] if second else [key for key in _HOLD_ROWS if isinstance(json.loads(first).get(key), list)]
    if held:
        raise UserError(
            f"{file.name} is one object; give the array under its {held[0]!r} as a file of its own"
        )


def _as_lines(file: File, cache_dir: Path, log: Callable[[str], None]) -> File:
    if file.is_lines:
        return file
    written = written_out(file.path, file.form, cache_dir=cache_dir, log=log)
    form = "jsonl" if file.form in TABLES else file.form
    return File(written, form, file.name, by_rows=file.form in ("parquet", "json"))


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no directory {path.parent}"
    near = get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
