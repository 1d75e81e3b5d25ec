"""Turn data files of older programs into ours: text into JSON lines, tokens into directories of tokens.

    tutelage data import alpaca/alpaca.pkl --allow_pickle --output_dir data/alpaca
    tutelage data import datasets/dolly --allow_pickle --output_dir data/dolly
    tutelage data import datasets/red_pajama --tokenizer llama2 --output_dir data/red_pajama
    tutelage data import instruct_dataset --output_dir data/stories

Known are universal-llm-trainer's NAME.pkl (conversations), InstructLLaMA's train.pkl and validation.pkl
(tokens of prompts with completions, of answers from best to worst, of prompts alone) and train.npy, and the
instruct storyteller's dataNN.bin with labelsNN.bin. Conversations become train.jsonl and val.jsonl; tokens
become encoded:DIR/train and encoded:DIR/val for sft, dpo, simpo and reward, and shards:DIR/train for
pretrain; they need no template, and the stage checks that the model has them all. Prompts alone are text
again, in a train.jsonl, by --tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    from tutelage.data.encoded import Answered
    from tutelage.data.faults import Faults
    from tutelage.data.legacy import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class DataImportConfig:
    data_path: Path  # a .pkl or .npy file, or a directory of such, or of dataNN.bin and labelsNN.bin
    output_dir: Path
    allow_pickle: bool = False
    """read .pkl files: values, arrays and tables of text are taken out of them, and nothing is ever run"""
    tokenizer: Path | None = None  # that made the tokens of .npy files and of prompts
    prompt_weight: float = 0.0  # of the tokens of prompts; InstructLLaMA trained with 0.01
    skip_bad_rows: bool = False  # count records that cannot be used and go on without them
    overwrite: bool = False  # replace what output_dir holds of these names

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_weight <= 1:
            raise UserError(f"prompt_weight is {self.prompt_weight:g}, must be from 0 to 1")


def run(config: DataImportConfig) -> None:
    """Find out what it is, write it, and name what was written: all of it, or nothing."""
    from tutelage.data.legacy import story_shards
    from tutelage.data.memmap_import import memmaps_of

    path = config.data_path.expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file() and path.suffix not in (".pkl", ".pickle", ".npy"):
        raise UserError(f"{path} is no .pkl or .npy file; `tutelage data import --help` says what is known")
    with ExitStack() as whole:  # at whose end all that was written moves in
        if memmaps := memmaps_of(path):
            places = _import_memmaps(config, memmaps, whole)
        elif path.is_dir() and (shards := story_shards(path)):
            places = _import_stories(config, shards, whole)
        elif path.is_file() or any(path.glob("*.pkl")):
            places = _import_pickles(config, path, whole)
        else:
            raise UserError(f"{path} holds no .pkl, no .npy and no dataNN.bin with labelsNN.bin")
    print("\n".join(places))


def _import_pickles(config: DataImportConfig, path: Path, whole: ExitStack) -> list[str]:
    from tutelage.data.faults import Faults
    from tutelage.data.legacy import parts_of, token_records

    if not config.allow_pickle:
        raise UserError(
            f"{path} is a pickle, which other programs run when they read it; give --allow_pickle: only "
            "values are taken out of it here, and a file that asks for more is refused"
        )
    parts = parts_of(path)
    _refuse_doubled([part.split for part in parts], path)
    places = []
    for part in parts:
        faults = Faults()
        if part.kind == "conversations":
            places.append(_import_conversations(config, part, faults, whole))
        elif part.kind == "prompts":
            places.append(_import_prompts(config, part, faults, whole))
        else:
            records, ranked = token_records(part, faults, config.prompt_weight), part.kind == "answers"
            places.append(
                _write_tokens(config, part.split, records, faults, part.source, ranked=ranked, whole=whole)
            )
    return places


def _refuse_doubled(splits: list[str], path: Path) -> None:
    if len(set(splits)) < len(splits):
        raise UserError(
            f"{path} has several files for {max(set(splits), key=splits.count)}; import them one by one"
        )


def _import_conversations(config: DataImportConfig, part: Part, faults: Faults, whole: ExitStack) -> str:
    from tutelage.data.legacy import conversations

    rows = ({"messages": messages} for messages in conversations(part, faults))
    return _write_lines(config, part, rows, faults, whole)[0]


def _import_prompts(config: DataImportConfig, part: Part, faults: Faults, whole: ExitStack) -> str:
    """Prompts as text; those that the tokenizer would write in other tokens are counted."""
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.data.legacy import prompts

    if config.tokenizer is None:
        raise UserError(f"{part.source} holds prompts as tokens; give --tokenizer, which made them")
    tokenizer, other = load_tokenizer(config.tokenizer), 0

    def texts() -> Iterable[dict[str, Any]]:
        nonlocal other
        for tokens in prompts(part, faults):
            if int(tokens.max()) >= tokenizer.size:
                raise UserError(
                    f"{part.source} has the token {int(tokens.max()):,}, and {config.tokenizer} has "
                    f"{tokenizer.size:,}: it was made with another tokenizer"
                )
            ids = tokens.tolist()
            begun = ids[1:] if ids[0] == tokenizer.bos else ids
            text = tokenizer.decode(begun)
            other += tokenizer.encode(text) != begun
            yield {"prompt": text}

    place, count = _write_lines(config, part, texts(), faults, whole)
    if other:
        say(f"{other:,} of {count:,} prompts are written in other tokens when they are encoded again")
    return place


def _import_stories(config: DataImportConfig, shards: list[Path], whole: ExitStack) -> list[str]:
    from tutelage.data.faults import Faults
    from tutelage.data.legacy import stories

    if len(shards) == 1:
        say(f"{shards[0]} is the only shard: it is all for training")
    held_out, places = shards[:1] if len(shards) > 1 else [], []
    for split, paths in (("val", held_out), ("train", shards[len(held_out) :])):
        if paths:
            faults = Faults()
            records = (record for path in paths for record in stories(path, faults))
            source = paths[0].parent
            places.append(_write_tokens(config, split, records, faults, source, ranked=False, whole=whole))
    return places


def _import_memmaps(config: DataImportConfig, paths: list[Path], whole: ExitStack) -> list[str]:
    from tutelage.checkpoint.json_file import read_object
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.data.aside import SHARD_FILES, written_aside
    from tutelage.data.memmap_import import import_memmap, meta_of
    from tutelage.report.progress import ByteBar

    if config.tokenizer is None:
        raise UserError(
            f"{paths[0]} holds tokens; give --tokenizer, which made them and which training will use"
        )
    tokenizer, places = load_tokenizer(config.tokenizer), []
    splits = ["val" if path.stem.startswith("val") and len(paths) > 1 else "train" for path in paths]
    _refuse_doubled(splits, paths[0].parent)
    for path, split in zip(paths, splits, strict=True):
        directory = _free(config, config.output_dir / split, "meta.json", "shard-*")
        aside = whole.enter_context(written_aside(directory, last="meta.json", ours=SHARD_FILES))
        found = meta_of(path)
        with ByteBar("copying") as bar:
            made = import_memmap(
                path,
                read_object(found) if found else {},
                tokenizer,
                aside,
                tokenizer_name=str(config.tokenizer),
                progress=bar.update,
            )
        say(f"{made['tokens']:,} tokens of {made['documents']:,} documents")
        places.append(f"shards:{directory}")
    return places


def _write_tokens(
    config: DataImportConfig,
    split: str,
    records: Iterable[Answered],
    faults: Faults,
    source: Path,
    *,
    ranked: bool,
    whole: ExitStack,
) -> str:
    from tutelage.data.aside import written_aside
    from tutelage.data.encoded import FILES, META, write_encoded

    directory = _free(config, config.output_dir / split, META, "rows")
    aside = whole.enter_context(written_aside(directory, last=META, ours=FILES))
    counts = write_encoded(
        aside, records, faults, ranked=ranked, source=str(source), skip=config.skip_bad_rows
    )
    say(
        f"{counts.records:,} records, {counts.documents:,} documents, {counts.tokens:,} tokens; "
        f"a vocabulary of {counts.largest + 1:,} or more is needed{_skipped(faults)}"
    )
    return f"encoded:{directory}"


def _write_lines(
    config: DataImportConfig, part: Part, rows: Iterable[dict[str, Any]], faults: Faults, whole: ExitStack
) -> tuple[str, int]:
    """Where the rows will be, and how many they are."""
    from tutelage.data.aside import written_aside

    name, count = f"{part.split}.jsonl", 0
    path = _free(config, config.output_dir / name)
    aside = whole.enter_context(written_aside(config.output_dir, last=name))
    with (aside / name).open("w", encoding="utf-8", errors="strict") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not config.skip_bad_rows:
        faults.refuse()
    if not count:
        raise UserError(f"{part.source} has no record of {part.split} that can be used")
    say(f"{count:,} records{_skipped(faults)}")
    return str(path), count


def _free(config: DataImportConfig, place: Path, *within: str) -> Path:
    """The place, if nothing stands there, or one of `within`, or it may be replaced."""
    from tutelage.data.aside import refuse_within

    refuse_within(place, [config.data_path.expanduser()])
    there = any(any(place.glob(pattern)) for pattern in within) if within else place.exists()
    if there and not config.overwrite:
        raise UserError(f"{place} exists; give --overwrite to replace it, or another --output_dir")
    return place


def _skipped(faults: Faults) -> str:
    if not faults.count:
        return ""
    return f"; {faults.count:,} bad ones skipped, the first of them {faults.named[0]}"
