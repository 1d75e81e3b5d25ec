"""From paths to documents for a `Loader`: read, encode, cut, say what was lost. Recipes call `prepare`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import tutelage
from tutelage.data.cache import DEFAULT_DIR, FILE_SHIFT, Shard, content_key, open_shard, write_shard
from tutelage.data.cut import TooLong, cut, refuse_unmasked
from tutelage.data.encode import Encoder, encode_rows
from tutelage.data.encoded import encoded_directories, open_encoded
from tutelage.data.faults import Faults
from tutelage.data.paths import DataPath
from tutelage.data.read import Rows, sample_together, scan
from tutelage.data.shapes import CHAT_SHAPES
from tutelage.data.sources import Source, parse_sources
from tutelage.data.store import SampleStore
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # rows encoded, rows in all


def prepare(
    paths: Sequence[str | Path | DataPath],
    *,
    num_samples: Sequence[float],
    template: Template | None,
    tokenizer: Tokenizer,
    max_seq_len: int,
    too_long: TooLong = "truncate",
    max_cut_percent: float = 5.0,
    skip_bad_rows: bool = False,
    allow_unmasked: bool = False,
    workers: int = 1,
    cache_dir: Path | None = None,
    log: Callable[[str], None],
    progress: Progress | None = None,
    split: str = "train",
    ranked: bool = False,
) -> SampleStore:
    """The documents of a data set, each fitting a row of `max_seq_len`; refuses data that should not be used.

    `template` may be None when every path is text. `split` is the word in the flags: train or val. With
    `ranked` the documents are answers, those to one prompt side by side.
    """
    store, faults = encode_paths(
        paths,
        num_samples=num_samples,
        template=template,
        tokenizer=tokenizer,
        skip_bad_rows=skip_bad_rows,
        workers=workers,
        cache_dir=cache_dir,
        log=log,
        progress=progress,
        split=split,
        ranked=ranked,
    )
    if not allow_unmasked:
        refuse_unmasked(store)
    store, report = cut(store, max_seq_len=max_seq_len, too_long=too_long, faults=faults, ranked=ranked)
    report.refuse(max_cut_percent)
    for line in report.lines():
        log(f"{split} data: {line}")
    if not len(store):
        raise UserError(f"no row of {', '.join(map(str, paths))} is left to learn from")
    return store


def encode_paths(
    paths: Sequence[str | Path | DataPath],
    *,
    num_samples: Sequence[float],
    template: Template | None,
    tokenizer: Tokenizer,
    skip_bad_rows: bool = False,
    workers: int = 1,
    cache_dir: Path | None = None,
    log: Callable[[str], None],
    progress: Progress | None = None,
    split: str = "train",
    ranked: bool = False,
) -> tuple[SampleStore, Faults]:
    """Every good row of a data set, uncut, and the bad ones that were skipped."""
    flag = f"--{split}_num_samples"
    amounts = list(num_samples) or [-1.0] * len(paths)
    if len(amounts) != len(paths):
        raise UserError(
            f"{flag} has {len(amounts)} values and --{split}_data_paths has {len(paths)}; "
            "give one for each path"
        )
    if directories := encoded_directories([path for path in paths if not isinstance(path, DataPath)]):
        if num_samples:
            raise UserError(f"{flag} chooses rows of files; what `tutelage data import` wrote is taken whole")
        return _together([open_encoded(place, tokenizer, ranked=ranked) for place in directories])
    groups = by_path(parse_sources(paths, ranked=ranked), len(paths), log)
    if template is None and any(group[0].kind != "text" for group in groups):
        raise UserError(
            f"conversations need a template; give --template_config, or only text: --{split}_data_paths"
        )
    if template is not None:
        template.check(tokenizer)
    encoder = Encoder(template, tokenizer)
    places = [
        (cache_dir or DEFAULT_DIR).expanduser() / _key(group, amount, skip_bad_rows, encoder)
        for group, amount in zip(groups, amounts, strict=True)
    ]
    shards = [open_shard(place, group[0].kind) for place, group in zip(places, groups, strict=True)]
    missing = {
        at: [scan(source) for source in group] for at, group in enumerate(groups) if shards[at] is None
    }
    if not skip_bad_rows:
        found = Faults()
        for rows in chain.from_iterable(missing.values()):
            found.extend(rows.faults)
        found.refuse()  # everything that is wrong, before anything is encoded
    for at, parts in missing.items():
        if silent := sum(rows.silent for rows in parts):
            log(f"{paths[at]}: {silent:,} rows end with a blank reply, of which only its end is learned")
        parts = sample_together(parts, amounts[at], str(paths[at]), flag)
        log(f"encoding {sum(map(len, parts)):,} rows of {paths[at]}")
        shards[at] = _encode(parts, places[at], encoder, skip_bad_rows, workers, progress or _every(10, log))
    return _together([shard for shard in shards if shard is not None])


def by_path(sources: list[Source], paths: int, log: Callable[[str], None]) -> list[list[Source]]:
    """The sources of each path, which must be of one kind; says what their records have and is not used."""
    groups = [[source for source in sources if source.number == number] for number in range(paths)]
    for group in groups:
        first = group[0]
        if other := next((source for source in group if source.kind != first.kind), None):
            raise UserError(
                f"{first.name or first.path} and {other.name or other.path} hold different things; "
                "what a path names is read in one way, so give them as two"
            )
        if first.unused:
            log(
                f"{first.name or first.path}: what is learned is in {', '.join(CHAT_SHAPES[first.shape])}; "
                f"{', '.join(first.unused)} of its records is not used"
            )
    return groups


def _key(group: list[Source], amount: float, skip_bad_rows: bool, encoder: Encoder) -> str:
    origin = encoder.origin(group[0].kind)
    keys = []
    for source in group:
        form = [source.kind, source.unit, source.key, source.shape, source.fields]
        keys.append(content_key(source.path, tutelage.__version__, *form, amount, skip_bad_rows, *origin))
    return keys[0] if len(keys) == 1 else hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]


def _encode(
    parts: list[Rows],
    place: Path,
    encoder: Encoder,
    skip_bad_rows: bool,
    workers: int,
    progress: Progress,
) -> Shard:
    total, skipped = sum(map(len, parts)), Faults()
    for rows in parts:
        skipped.extend(rows.faults)

    def counted():
        done = 0
        for number, rows in enumerate(parts):
            for chunk in encode_rows(rows, encoder, workers=workers):
                chunk.lines += number << FILE_SHIFT
                yield chunk
                done += chunk.read
                progress(done, total)

    write_shard(place, counted(), skipped, skip=skip_bad_rows)
    shard = open_shard(place, parts[0].source.kind)
    if shard is None:
        raise UserError(
            f"the encoded data in {place} cannot be read back; remove it or pass another --cache_dir"
        )
    return shard


def _every(seconds: float, log: Callable[[str], None]) -> Progress:
    """Says now and then how far the encoding is, so that nobody takes a long one for a hanging one."""
    last = time.monotonic()

    def progress(done: int, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds and done < rows:
            last = time.monotonic()
            log(f"encoded {done:,} of {rows:,} rows")

    return progress


def _together(shards: list[Shard]) -> tuple[SampleStore, Faults]:
    skipped = Faults()
    for shard in shards:
        skipped.extend(shard.faults)
    return SampleStore.of_shards(shards), skipped
