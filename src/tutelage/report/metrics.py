"""Where the numbers of a run go: `metrics.jsonl` and TensorBoard, and Weights & Biases if asked."""

import json
from pathlib import Path
from typing import Protocol

from tutelage.errors import UserError


class Writer(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """Appends to a JSON lines file; what lies past `step`, written by a run that was killed, is dropped."""

    def __init__(self, path: Path, *, step: int = 0):
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step] if step else []
        aside = path.with_name(f".{path.name}")
        aside.write_text("".join(f"{line}\n" for line in kept))
        aside.replace(path)
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, on the disk when this returns."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars for `tensorboard --logdir OUT/tensorboard`."""

    def __init__(self, directory: Path, *, step: int = 0):
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars for wandb, an optional dependency."""

    def __init__(self, *, project: str, entity: str | None, group: str | None, name: str):
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError("--wandb needs the package wandb: pip install 'tutelage[wandb]'") from error
        self._run = wandb.init(project=project, entity=entity, group=group, name=name)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _whole_lines(path: Path) -> list[str]:
    """Lines that are JSON; a kill may have cut the last one."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            json.loads(line)
        except ValueError:
            continue
        lines.append(line)
    return lines
