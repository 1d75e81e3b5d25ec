"""Files ending in .pth beside params.json: Meta's, torchllms' or InstructLLaMA's, told apart by names."""

from pathlib import Path

from tutelage.checkpoint.instructllama import InstructLlamaSource
from tutelage.checkpoint.meta.model import SHARD, MetaSource
from tutelage.checkpoint.meta.params import PARAMS
from tutelage.checkpoint.torch_file.read import read_state
from tutelage.checkpoint.torchllms_lora import ARGS, newest
from tutelage.errors import UserError

_INSTRUCTLLAMA = "token_embeddings.weight"


def find_pth(path: Path) -> list[Path]:
    """The files of one model: `path`, or those of a directory without another model; none if it is none."""
    directory = path.parent if path.is_file() else path
    if not (directory / PARAMS).is_file() or (path.is_file() and path.suffix != ".pth"):
        return []
    if path.is_file() and not SHARD.fullmatch(path.name):
        return [path]
    if path.is_dir() and any(True for kind in ("*.safetensors", "*.gguf") for _ in path.glob(kind)):
        return []
    shards = sorted(file for file in directory.iterdir() if SHARD.fullmatch(file.name))
    for number, shard in enumerate(shards):
        if shard.name != f"consolidated.{number:02d}.pth":
            raise UserError(f"{directory}: consolidated.{number:02d}.pth is missing; {shard.name} is there")
    return shards or _alone(directory)


def open_pth(paths: list[Path]) -> InstructLlamaSource | MetaSource:
    """The weights and, as their `config`, the shape of a model that `find_pth` found."""
    if len(paths) == 1 and _INSTRUCTLLAMA in read_state(paths[0]):
        return InstructLlamaSource(paths[0])
    return MetaSource(paths)


def _alone(directory: Path) -> list[Path]:
    if (directory / ARGS).is_file():  # an adapter
        return []
    found = sorted(directory.glob("*.pth"))
    if len(found) > 1 and (last := newest(directory)):
        return [last]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{directory} holds {len(found)} .pth files; give one: {names}")
    return found
