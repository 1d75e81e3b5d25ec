"""Write records of any shape that is read as JSON lines of the one shape that the stages are written for.

    tutelage data convert --input sharegpt.parquet --output chats.jsonl
    tutelage data convert --input faq.csv --data_fields question=instruction answer=output --output faq.jsonl

Writes {"messages"}; {"prompt", "chosen", "rejected"}, {"prompt", "answers"} or {"prompt", "completion",
"label"} where answers are compared; {"prompt"} where nothing is answered; {"text"} of plain documents. All
prompts and answers become lists of messages. `--to prompts` leaves out what the assistant says last. Bad rows
are refused, the first ten named, or counted and left out with --skip_bad_rows.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import UserError, no_room
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.data.comparison import Comparison
    from tutelage.data.paths import DataPath
    from tutelage.data.sources import Source

_ENDS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConvertConfig:
    input: tuple[str, ...]
    """jsonl:, parquet:, csv:, json: or text:FILE, a folder or *.suffix of them, local:DIR, hub ids"""
    input_splits: tuple[str, ...] = ()  # of each input: one of a data set's or a folder's; - for files
    input_shapes: tuple[str, ...] = ()  # of each input: messages, sharegpt, alpaca, ... or - to find out
    data_fields: tuple[str, ...] = ()  # OLD=NEW, other names for keys of records, like question=instruction
    output: Path  # JSON lines: a name that ends in .jsonl or .ndjson, and .gz where they shall be compressed
    to: Literal["auto", "messages", "comparisons", "prompts", "text"] = "auto"  # auto: what the input is
    skip_bad_rows: bool = False  # count rows that cannot be used and leave them out
    overwrite: bool = False  # replace output
    cache_dir: Path | None = None  # of rows that are not lines yet; default ~/.cache/tutelage

    def __post_init__(self) -> None:
        if not self.input:
            raise UserError("input names no path")
        if not self.output.name.lower().endswith(_ENDS):
            raise UserError(
                f"{self.output} would hold JSON lines; give it a name that ends in one of {', '.join(_ENDS)}"
            )
        if self.output.exists() and not self.overwrite:
            raise UserError(f"{self.output} exists; give --overwrite to replace it, or another --output")


def run(config: DataConvertConfig) -> None:
    """Check every row, write the good ones, say how many there were."""
    from tutelage.data.faults import Faults
    from tutelage.data.paths import find_data
    from tutelage.data.read import load_rows, scan
    from tutelage.data.tables import as_json

    found = find_data(
        config.input,
        config.input_splits,
        shapes=config.input_shapes,
        fields=config.data_fields,
        cache_dir=config.cache_dir,
        log=say,
        flag="--input_splits",
    )
    files = [file for path in found for file in path.files]
    places = [place for file in files for place in (file.path, file.name)]  # the name is what was given
    if config.output.resolve() in {Path(place).resolve() for place in places}:
        raise UserError(f"{config.output} would be written over, and is read; give another --output")
    sources = _sources(config, found)
    scanned, faults = [scan(source) for source in sources], Faults()
    for rows in scanned:
        faults.extend(rows.faults)
    if not config.skip_bad_rows:
        faults.refuse()
    if not any(map(len, scanned)):
        raise UserError(f"none of {faults.count:,} rows can be used, so none is written: {faults.named[0]}")

    def lines() -> Iterator[bytes]:
        for rows in scanned:
            for row in load_rows(rows.source, rows.offsets):
                yield as_json(_canonical(row, rows.source.kind)) + b"\n"

    aside = config.output.with_name(f"{config.output.name}.partial")
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            if config.output.name.lower().endswith(".gz"):
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    packed.writelines(lines())
            else:
                file.writelines(lines())
        aside.replace(config.output)
    except OSError as error:
        raise UserError(f"{config.output} cannot be written: {no_room(error) or error.strerror}") from error
    finally:
        with suppress(OSError):
            aside.unlink()
    skipped = f"; {faults.count:,} bad ones left out, first {faults.named[0]}" if faults.count else ""
    if silent := sum(rows.silent for rows in scanned):
        skipped += f"; {silent:,} rows end with a blank reply"
    shapes = ", ".join(sorted({_named(source) for source in sources}))
    say(f"{sum(map(len, scanned)):,} rows of {shapes}{skipped}")
    print(config.output)


def _sources(config: DataConvertConfig, found: list[DataPath]) -> list[Source]:
    """The files, read as what they are to become."""
    from tutelage.data.sources import parse_sources, recognised

    if config.to == "auto":
        return recognised(found)
    sources = parse_sources(found, ranked=config.to == "comparisons", prompts=config.to == "prompts")
    wanted = {"messages": "jsonl", "text": "text"}.get(config.to)
    if other := next((source for source in sources if wanted and source.kind != wanted), None):
        has = "conversations, which only a template makes texts of" if wanted == "text" else "plain texts"
        raise UserError(f"{other.name or other.path} has {has}; leave out --to, or give other input")
    return sources


def _canonical(row: Any, kind: str) -> dict[str, Any]:
    key = {"jsonl": "messages", "prompt": "prompt", "text": "text", "ranked": "prompt"}[kind]
    record = _compared(row) if kind == "ranked" else {key: row}
    if kind != "text" and "tools" in record[key][0]:  # where others look for them: beside the messages
        (first, *rest), tools = record[key], record[key][0]["tools"]
        apart = {name: value for name, value in first.items() if name != "tools"}
        record = {**record, key: [apart, *rest], "tools": tools}
    return record


def _compared(row: Comparison) -> dict[str, Any]:
    known = all(map(math.isfinite, row.scores))
    if len(row.answers) == 1:
        return {"prompt": row.prompt, "completion": row.answers[0], "label": row.ranks[0] == 0}
    if len(row.answers) == 2 and len(set(row.ranks)) == 2:
        margin = {"margin": row.scores[0] - row.scores[1]} if known else {}
        return {"prompt": row.prompt, "chosen": row.answers[0], "rejected": row.answers[1], **margin}
    return {"prompt": row.prompt, "answers": row.answers, **({"scores": row.scores} if known else {})}


def _named(source: Source) -> str:
    names = {"ranked": "comparisons", "text": "plain text", "prompt": "prompts"}
    return names.get(source.kind, f"the shape {source.shape}")
