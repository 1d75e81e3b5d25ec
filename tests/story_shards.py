"""Shards of the same shape as TinyStories_all_data's, small enough to follow by hand."""

import io
import json
import tarfile
from pathlib import Path

OPENING = (
    "Write a short story (3-5 paragraphs) which only uses very simple words that a 3 year old child would "
    "understand."
)


def item(number: int, *, story: str | None = None, ending: str = "\n\nPossible story:") -> dict:
    words = ["climb", "ring", f"messy{number}"]
    prompt = (
        f'{OPENING} In the story, try to at some point use the verb "climb", the noun "ring" and the '
        f'adjective "{words[2]}". Remember to only use simple words!{ending}'
    )
    return {
        "story": f"\n\nOnce upon a time, Zoë found ring {number}.\n\nThe end. " if story is None else story,
        "instruction": {"prompt:": prompt, "words": words, "features": []},
        "summary": "A ring is found.",
        "source": "GPT-4",
    }


def write_shards(directory: Path, *sizes: int) -> list[Path]:
    """data00.json, data01.json, … of so many items each."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, size in enumerate(sizes):
        path = directory / f"data{place:02d}.json"
        path.write_text(json.dumps([item(100 * place + number) for number in range(size)]))
        paths.append(path)
    return paths


def archive_of(members: dict[str, bytes]) -> bytes:
    """A tar.gz with files of these names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
