"""The examinations of `doctor` that look at files and weights: each adds what it finds to the record."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tutelage.checkpoint.gguf.model import GGUFSource
from tutelage.checkpoint.hf import load_config, open_source, read_adapter
from tutelage.checkpoint.hub import local_path
from tutelage.checkpoint.note import read_note
from tutelage.checkpoint.source import EMBEDDING, HEAD, Source, pieces
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.recipes.stage.chain import Chain, chain_of, shape_of
from tutelage.report.health import Health
from tutelage.train.saver import complete, read_state

_WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}
_SHOWN = 5
_AGAIN = "get the files that are named anew, by the command that made them or from where they came"


def run_directory(health: Health, name: str) -> None:
    """The state of a run, where `name` is a run's directory."""
    path = Path(name).expanduser()
    if not (path / "checkpoints").is_dir() and not (path / "config.yaml").is_file():
        return
    whole = complete(path / "checkpoints") if (path / "checkpoints").is_dir() else []
    results = [name for name in ("model", "adapter") if (path / name).is_dir()]
    health.note("run", "result", ", ".join(results) or "none yet")
    health.note("run", "checkpoints", ", ".join(each.name for each in whole) or "none")
    if whole:
        state = read_state(whole[-1])
        health.note("run", "goes on with", f"step {state['step'] + 1}, with the same command and --resume")
    if (path / "checkpoints").is_dir():
        broken = [p.name for p in sorted((path / "checkpoints").glob("step-*")) if p not in whole]
        if broken:
            health.warn(
                f"checkpoints that are not whole: {', '.join(broken)}; --resume goes by them",
                "remove them if the disk is short; the run does not need them",
            )


def whole_chain(health: Health, ckpt_paths: Sequence[str]) -> Chain | None:
    """The model and adapters of these names; None where there is no such model, which is a problem."""
    try:
        local_path(ckpt_paths[0])
        return chain_of(ckpt_paths)
    except UserError as error:
        health.problem(error, "give what the message asks for")
        return None


def model(health: Health, chain: Chain, *, deep: bool) -> tuple[ModelConfig | None, Source | None]:
    """The model's shape, and its files against it; None where they cannot be used."""
    _note_files(health, chain.base)
    try:
        shape = load_config(chain.base)
    except UserError as error:
        health.problem(error, "mend the setting that is named, or give a model of a supported family")
        return None, None
    _note_shape(health, shape)
    try:
        _, source = open_source(chain.base)
    except UserError as error:
        health.problem(error, _AGAIN)
        return shape, None
    dtype = str(source.dtype).removeprefix("torch.")
    health.note("files", "stored as", ", ".join(source.kinds) if isinstance(source, GGUFSource) else dtype)
    twice = shape.tied and HEAD in source.shapes
    if twice:
        health.warn(
            f"the head is tied to the embedding and stored too: {_size(_bytes_of(source, HEAD))} for nothing",
            "`tutelage convert` writes it once",
        )
    if deep:
        _read_everything(health, source, compare_head=twice)
    return shape, source


def adapters(health: Health, chain: Chain, shape: ModelConfig | None) -> None:
    """What each adapter changes, and what it was trained on."""
    for path in chain.adapters:
        section = f"adapter {path.name}"
        health.note(section, "at", path)
        if shape is None:
            continue
        try:
            stored = read_adapter(path, shape)
        except UserError as error:
            health.problem(error, _AGAIN)
            continue
        ranks = sorted({low.a.shape[0] for low in stored.layers.values()})
        kinds = sorted({name.rpartition(".")[2] for name in stored.layers})
        health.note(section, "changes", f"{len(stored.layers)} layers ({', '.join(kinds)})")
        health.note(section, "rank", ", ".join(map(str, ranks)))
        if stored.full:
            health.note(section, "trained in full", ", ".join(sorted(stored.full)[:_SHOWN]))
        health.note(section, "trained on", stored.base or "it does not say")
        note = read_note(path)
        if note.rounding is not None:
            health.note(section, "over weights in", note.rounding.quantization.kind)
    if chain.adapters and shape is not None:
        try:
            shape_of(chain)
            open_source(chain.base, chain.adapters)
        except UserError as error:
            health.problem(error, "give the adapter with the model that it was trained on")


def _note_files(health: Health, path: Path) -> None:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    weights = [file for file in files if file.suffix in _WEIGHTS]
    health.note("files", "at", path)
    shown = [f"{file.name} {_size(file.stat().st_size)}" for file in weights[:_SHOWN]]
    more = [f"and {len(weights) - _SHOWN} more"] if len(weights) > _SHOWN else []
    health.note("files", "weights", ", ".join(shown + more) or "none")
    others = [file.name for file in files if file not in weights]
    if others:
        health.note("files", "beside them", ", ".join(others))


def _note_shape(health: Health, shape: ModelConfig) -> None:
    head = "" if shape.head == "lm" else ", scores texts instead of writing them"
    health.note("model", "family", shape.family + head)
    health.note("model", "parameters", f"{shape.n_parameters:,}")
    tied = "tied" if shape.tied else "its own"
    health.note(
        "model",
        "shape",
        f"{shape.n_layers} layers, dim {shape.dim}, {shape.n_heads} heads over {shape.n_kv_heads} of "
        f"{shape.head_dim}, MLP {shape.ffn_dim}, vocabulary {shape.vocab_size:,}, head {tied}",
    )
    health.note("model", "context", f"{shape.max_positions:,} tokens")
    if window := next((window for window in shape.windows or () if window), None):
        layers = sum(window is not None for window in shape.windows or ())
        health.note("model", "window", f"{window:,} tokens, in {layers} of {shape.n_layers} layers")
    if shape.rope_scaling:
        health.note(
            "model", "rotary", f"{shape.rope_scaling['rope_type']} scaling, base {shape.rope_theta:g}"
        )
    if shape.role_embeddings:
        health.note("model", "roles", "role embeddings, which no other program reads")


def _bytes_of(source: Source, name: str) -> int:
    return torch.Size(source.shapes[name]).numel() * source.dtype.itemsize


def _read_everything(health: Health, source: Source, *, compare_head: bool) -> None:
    """Every weight once: what is not a number, and a stored head that is not the embedding it is tied to."""
    broken: dict[str, int] = {}
    for name, shape in source.shapes.items():
        count = 0
        for start, stop in pieces(shape) if shape else ():
            count += int((~torch.isfinite(source.rows(name, start, stop))).sum())
        if count:
            broken[name] = count
    if broken:
        shown = ", ".join(f"{name} ({count:,})" for name, count in list(broken.items())[:_SHOWN])
        health.problem(
            f"{sum(broken.values()):,} weights in {len(broken)} tensors are infinite or no numbers: {shown}",
            "get the files anew, or go back to a checkpoint before the training failed; where they were made "
            "from larger numbers by fp16, convert again with --precision bf16",
        )
    if compare_head and any(
        not torch.equal(source.rows(HEAD, *piece), source.rows(EMBEDDING, *piece))
        for piece in pieces(source.shapes[HEAD])
    ):
        health.problem(
            "lm_head.weight differs from the embedding that config.json ties it to",
            "set tie_word_embeddings to false in config.json to use both, or remove lm_head.weight",
        )
    elements = sum(torch.Size(shape).numel() for shape in source.shapes.values())
    health.note("files", "read", f"all {elements:,} weights")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
