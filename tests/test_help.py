"""What `--help` shows: the meaning of every setting, its choices and its default, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tutelage.config import help_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """A config that is explained in every way there is."""

    # the model
    ckpt_paths: list[Path]  # where the weights lie
    template_config: str | None = None
    """A built-in template
    or a file."""

    # how it learns
    lr: float = 2e-5  # the highest one
    # of AdamW; the second
    # is the slower
    betas: tuple[float, float] = (0.9, 0.999)
    lr_scheduler: Literal["linear", "cosine"] = "linear"
    pack_samples: bool = False
    train_num_samples: list[float] = field(default_factory=list)
    limit: int | None = None
    cache: Path | None = None  # default: no cache
    mark: str = "#"  # a sign, not a comment


@dataclass(frozen=True, kw_only=True, slots=True)
class Advanced(Lesson):
    lr: float = 1e-2
    mark: str = "%"  # noqa: E501  another sign


def shown(config_class: type) -> str:
    """The help on one line, without its boxes."""
    lines = help_text("sft", config_class, "Fine-tune.\n\n    tutelage sft --ckpt_paths m").splitlines()
    return " ".join(word for line in lines for word in line.strip("│ ").split())


def test_a_setting_is_shown_with_its_meaning_choices_and_default():
    text = shown(Lesson)
    for expected in (
        "usage: tutelage sft [--config FILE] [--flag value ...] Fine-tune. tutelage sft --ckpt_paths m ╭",
        "--config FILE settings from YAML; flags override them",
        "--print_config print every setting as YAML and stop",
        "--ckpt_paths PATH ... where the weights lie (required)",
        "--template_config TEXT A built-in template or a file. (default: null)",
        "--lr NUMBER the highest one (default: 2e-05)",
        "--betas NUMBER NUMBER of AdamW; the second is the slower (default: 0.9 0.999)",
        "--lr_scheduler {linear,cosine} (default: linear)",
        "--pack_samples, --no_pack_samples (default: false)",
        "--train_num_samples NUMBER ... (default: none)",
        "--limit INTEGER (default: null)",
        "--cache PATH default: no cache --",
        "--mark TEXT a sign, not a comment (default: #)",
    ):
        assert expected in text, f"{expected!r} is not in\n{text}"


def test_settings_stand_in_groups_and_boxes_stay_straight(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text("sft", Lesson, "")
    assert text.index("─ the model ─") < text.index("--ckpt_paths PATH") < text.index("─ how it learns ─")
    boxes = text[text.index("╭") :].splitlines()
    assert {len(line) for line in boxes if line} == {len(boxes[0])}
    assert len(boxes[0]) <= 100


def test_a_subclass_explains_only_what_it_changes():
    text = shown(Advanced)
    assert "--lr NUMBER the highest one (default: 0.01)" in text
    assert "another sign (default: %)" in text
    assert text.index("─ how it learns ─") < text.index("--lr ")
    assert "─ settings ─" not in text


def test_a_class_without_source_is_shown_without_notes():
    namespace: dict = {"dataclass": dataclass}
    exec("@dataclass\nclass Bare:\n    steps: int = 3  # unseen", namespace)
    assert "╭─ settings ─" in shown(namespace["Bare"])
    assert "--steps INTEGER (default: 3)" in shown(namespace["Bare"])
