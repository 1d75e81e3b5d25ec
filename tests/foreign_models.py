"""Meta's and litgpt's own models, out of their packages, without what else they import."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from materials import litgpt_dir, llama_models_dir
from torch import Tensor, nn


class ColumnParallelLinear(nn.Linear):
    """Of one device; of more, each has some of the rows."""

    def __init__(self, wide: int, out: int, bias: bool, init_method: Any, gather_output: bool = True) -> None:
        super().__init__(wide, out, bias=bias)


class RowParallelLinear(nn.Linear):
    """Of one device; of more, each has some of the columns."""

    def __init__(self, wide: int, out: int, bias: bool, input_is_parallel: bool, init_method: Any) -> None:
        super().__init__(wide, out, bias=bias)


class VocabParallelEmbedding(nn.Embedding):
    """Of one device; of more, each has some of the rows."""

    def __init__(self, rows: int, wide: int, init_method: Any) -> None:
        super().__init__(rows, wide)


@cache
def meta() -> ModuleType:
    """llama_models.llama3.model, over fairscale's layers as they are on one device."""
    initialize = _module("fairscale.nn.model_parallel.initialize", get_model_parallel_world_size=lambda: 1)
    layers = {
        kind.__name__: kind for kind in (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)
    }
    _module("fairscale.nn.model_parallel.layers", **layers)
    for name in ("fairscale", "fairscale.nn"):
        _module(name, model_parallel=sys.modules.get("fairscale.nn.model_parallel"))
    _module("fairscale.nn.model_parallel", initialize=initialize)
    sys.modules["fairscale"].nn = sys.modules["fairscale.nn"]  # type: ignore[attr-defined]
    sys.modules["fairscale.nn"].model_parallel = sys.modules["fairscale.nn.model_parallel"]  # type: ignore
    _module("metas")
    _loaded("metas.args", llama_models_dir() / "args.py")
    return _loaded("metas.model", llama_models_dir() / "model.py")


def meta_logits(directory: Path, params: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """(1, T) -> (1, T, V), of a state dict that must be exactly what Meta's model of these params has."""
    program = meta()
    model = program.Transformer(program.ModelArgs(**params, max_seq_len=64, max_batch_size=1))
    model.load_state_dict(state)
    return model(tokens, 0).clone()


@cache
def litgpt() -> ModuleType:
    """litgpt.model, and of what it imports only what it uses."""
    for name in ("litgpt", "litgpt.scripts"):
        _module(name)
    _loaded("litgpt.config", litgpt_dir() / "config.py")
    text = (litgpt_dir() / "convert_hf_checkpoint.py").read_text()
    begin = text.index("def qkv_reassemble(")
    body = text[begin : text.index("\ndef ", begin + 1)].replace("torch.Tensor | NotYetLoadedTensor", "Any")
    script = _module("litgpt.scripts.convert_hf_checkpoint", torch=torch, Any=Any, Config=Any)
    exec(body, script.__dict__)
    program = _loaded("litgpt.model", litgpt_dir() / "model.py")
    sys.modules["litgpt"].model = program  # type: ignore[attr-defined]
    return program


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(attributes, __path__=[])
    sys.modules[name] = module
    return module


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
