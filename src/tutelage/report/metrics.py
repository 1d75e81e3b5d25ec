"""Where the numbers of a run go: `metrics.jsonl` and TensorBoard, and Weights & Biases if asked."""

import contextlib
import html
import json
import os
import socket
import textwrap
import time
from pathlib import Path
from typing import Any, Protocol


class Writer(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def text(self, step: int, tag: str, text: str) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """Appends to a JSON lines file; what lies past `step`, written by a run that was killed, is dropped."""

    def __init__(self, path: Path, *, step: int = 0):
        kept = [row for row in read_rows(path) if row["step"] <= step]
        aside = path.with_name(f".{path.name}")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        aside.replace(path)
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, out of this process when this returns."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def text(self, step: int, tag: str, text: str) -> None:
        """Nothing: texts have a file of their own."""

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars and texts for `tensorboard --logdir OUT/tensorboard`; what lies past `step` is not shown.

    Written here and not by SummaryWriter: its thread keeps events for two minutes, which a kill would take.
    """

    def __init__(self, directory: Path, *, step: int = 0):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((directory / name).open("xb"))
        self._event: Any = vars(event_pb2)["Event"]  # protobuf makes these classes at import
        self._summary: Any = vars(summary_pb2)["Summary"]
        self._text_summary = text_pb
        self._write(self._event(file_version="brain.Event:2"))
        start = vars(event_pb2)["SessionLog"](status="START")  # from here on what went before is void
        self._write(self._event(step=step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One event, out of this process when this returns."""
        summary = self._summary()
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        self._write(self._event(step=step, summary=summary))

    def text(self, step: int, tag: str, text: str) -> None:
        """One event of TensorBoard's text plugin, indented: it reads Markdown, and shows that as it is."""
        indented = textwrap.indent(text, "    ", lambda line: True)
        self._write(self._event(step=step, summary=self._text_summary(tag, indented)))

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


class WeightsAndBiases:
    """Scalars and texts for wandb, an optional dependency."""

    def __init__(self, *, project: str, entity: str | None, group: str | None, name: str):
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(project=project, entity=entity, group=group, name=name)
        self._html = wandb.Html

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        """The text as it is: wandb shows pages."""
        self._run.log({tag: self._html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        self._run.finish()


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file, if there is one; what is none, as a kill may leave, is left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
    return rows
