"""From paths to documents for a `Loader`: read, encode, cut, say what was lost. Recipes call `prepare`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tutelage
from tutelage.data.cache import DEFAULT_DIR, Shard, content_key, open_shard, write_shard
from tutelage.data.cut import TooLong, cut, refuse_unmasked
from tutelage.data.encode import Encoder, encode_rows
from tutelage.data.encoded import encoded_directories, open_encoded
from tutelage.data.read import Faults, Rows, Source, parse_sources, scan
from tutelage.data.store import SampleStore
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # rows encoded, rows in all


def prepare(
    paths: Sequence[str | Path],
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
    paths: Sequence[str | Path],
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
    if directories := encoded_directories(paths):
        if num_samples:
            raise UserError(f"{flag} chooses rows of files; what `tutelage data import` wrote is taken whole")
        return _together([open_encoded(place, tokenizer, ranked=ranked) for place in directories])
    sources = parse_sources(paths, ranked=ranked)
    if template is None and any(source.kind != "text" for source in sources):
        raise UserError(
            f"conversations need a template; give --template_config, or only text: --{split}_data_paths"
        )
    if template is not None:
        template.check(tokenizer)
    encoder = Encoder(template, tokenizer)
    places = [
        (cache_dir or DEFAULT_DIR).expanduser() / _key(source, amount, skip_bad_rows, encoder)
        for source, amount in zip(sources, amounts, strict=True)
    ]
    shards = [open_shard(place, source.kind) for place, source in zip(places, sources, strict=True)]
    missing = {at: scan(source) for at, source in enumerate(sources) if shards[at] is None}
    if not skip_bad_rows:
        found = Faults()
        for rows in missing.values():
            found.extend(rows.faults)
        found.refuse()  # everything that is wrong, before anything is encoded
    for at, rows in missing.items():
        rows = rows.sample(amounts[at], flag)
        log(f"encoding {len(rows):,} rows of {sources[at].path}")
        shards[at] = _encode(rows, places[at], encoder, skip_bad_rows, workers, progress or _every(10, log))
    return _together([shard for shard in shards if shard is not None])


def _key(source: Source, amount: float, skip_bad_rows: bool, encoder: Encoder) -> str:
    origin = encoder.origin(source.kind)
    form = (source.kind, source.unit, source.key)
    return content_key(source.path, tutelage.__version__, *form, amount, skip_bad_rows, *origin)


def _encode(
    rows: Rows,
    place: Path,
    encoder: Encoder,
    skip_bad_rows: bool,
    workers: int,
    progress: Progress,
) -> Shard:
    def counted():
        done = 0
        for chunk in encode_rows(rows, encoder, workers=workers):
            yield chunk
            done += chunk.read
            progress(done, len(rows))

    write_shard(place, counted(), rows.faults, skip=skip_bad_rows)
    shard = open_shard(place, rows.source.kind)
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
