"""The shards of TinyStories written out as JSON lines, a process a shard; no finished shard is done again."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tutelage.data.processes import in_processes
from tutelage.data.stories.storyteller import conversation_of, items_of
from tutelage.errors import UserError

SPLITS, KINDS = ("train", "val"), ("chats", "stories")
NAMES = {  # the files of a data set, by split and kind
    (split, kind): f"{split}.jsonl" if kind == "chats" else f"{split}_stories.jsonl"
    for split in SPLITS
    for kind in KINDS
}
DONE = "storyteller.json"  # written last: where it is present, the data set is whole
_PARTS = ".parts"


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard to write, and which of its items are held out: all, none, or every so-many-th."""

    path: Path
    held_out_every: int  # 1: all of them; 0: none
    skip_bad_rows: bool

    def origin(self) -> list[object]:
        """What determines the files made of it."""
        status = self.path.stat()
        return [self.path.name, status.st_size, status.st_mtime_ns, self.held_out_every, self.skip_bad_rows]


@dataclass(slots=True)
class Counts:
    """What became of the items of one shard, or of all."""

    train: int = 0
    val: int = 0
    skipped: int = 0
    first_skipped: str | None = None

    def add(self, other: "Counts") -> None:
        self.train += other.train
        self.val += other.val
        self.skipped += other.skipped
        self.first_skipped = self.first_skipped or other.first_skipped


def plan_shards(paths: Sequence[Path], *, val_share: float, skip_bad_rows: bool) -> list[Shard]:
    """The first shard is held out; of a single one, only `val_share`."""
    if len(paths) == 1:
        return [Shard(paths[0], max(2, round(1 / val_share)), skip_bad_rows)]
    return [Shard(path, 1 if place == 0 else 0, skip_bad_rows) for place, path in enumerate(paths)]


def build(
    shards: Sequence[Shard], directory: Path, *, workers: int, on_bytes: Callable[[int, int], None]
) -> Counts:
    """Write train.jsonl, val.jsonl and the same stories as plain text; `on_bytes` is told the bytes read."""
    parts = directory / _PARTS
    parts.mkdir(parents=True, exist_ok=True)
    total, done = Counts(), 0
    sizes = [shard.path.stat().st_size for shard in shards]
    tasks = [(shard,) for shard in shards]
    for size, counts in zip(sizes, in_processes(write_shard, parts, tasks, workers=workers), strict=True):
        total.add(counts)
        done += size
        on_bytes(done, sum(sizes))
    if not total.train or not total.val:
        raise UserError(
            f"{shards[0].path.parent} has {total.train} stories to train on and {total.val} to hold out; "
            "at least one of each is needed"
        )
    for (split, kind), name in NAMES.items():
        _join([_part(parts, shard, split, kind) for shard in shards], directory / name)
    _write_whole(directory / DONE, json.dumps({"shards": origins(shards), **asdict(total)}, indent=2))
    shutil.rmtree(parts)
    return total


def origins(shards: Sequence[Shard]) -> list[list[object]]:
    """What determines a whole data set."""
    return [shard.origin() for shard in shards]


def write_shard(parts: Path, shard: Shard) -> Counts:
    """Write one shard's part of every file; its counts, at once where it was finished before."""
    record = parts / f"{shard.path.stem}.json"
    if record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["origin"] == shard.origin():
            return Counts(**kept["counts"])
    counts = Counts()
    with ExitStack() as stack:
        files = {
            key: stack.enter_context(_part(parts, shard, *key).open("w", encoding="utf-8")) for key in NAMES
        }
        for number, item in enumerate(items_of(shard.path), start=1):
            messages = conversation_of(item)
            if isinstance(messages, str):
                _skip(shard, number, messages, counts)
                continue
            held_out = shard.held_out_every > 0 and number % shard.held_out_every == 0
            split = "val" if held_out else "train"
            counts.val += held_out
            counts.train += not held_out
            files[split, "chats"].write(_line({"messages": messages}))
            files[split, "stories"].write(_line({"text": messages[1]["content"]}))
    _write_whole(record, json.dumps({"origin": shard.origin(), "counts": asdict(counts)}))
    return counts


def _line(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _skip(shard: Shard, number: int, reason: str, counts: Counts) -> None:
    """Count an item that cannot be used; the data is known to have empty stories, any other is a mistake."""
    where = f"{shard.path}, item {number:,}: {reason}"
    if not shard.skip_bad_rows and reason != "the story is empty":
        raise UserError(f"{where}; mend the file, or count and skip such items with --skip_bad_rows")
    counts.skipped += 1
    counts.first_skipped = counts.first_skipped or where


def _part(parts: Path, shard: Shard, split: str, kind: str) -> Path:
    return parts / f"{shard.path.stem}.{split}.{kind}.jsonl"


def _join(parts: Sequence[Path], target: Path) -> None:
    """The parts in order as one file, which is whole or not there."""
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
    os.replace(partial, target)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
