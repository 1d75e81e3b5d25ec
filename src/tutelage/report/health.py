"""What `doctor` found out about a model: facts by section, findings with remedies, as a table or a record."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the user should know of, and what to do about it."""

    text: str
    remedy: str
    serious: bool  # whether the model does not work, or not as meant, before it is mended


@dataclass(slots=True)
class Health:
    """Everything found out so far."""

    model: str
    facts: dict[str, dict[str, str]] = field(default_factory=dict)  # section -> what -> value
    findings: list[Finding] = field(default_factory=list)

    def note(self, section: str, what: str, value: object) -> None:
        """Keep a fact."""
        self.facts.setdefault(section, {})[what] = str(value)

    def problem(self, text: object, remedy: str) -> None:
        """Keep what has to be mended."""
        self.findings.append(Finding(str(text), remedy, serious=True))

    def warn(self, text: object, remedy: str) -> None:
        """Keep what works here, but may surprise."""
        self.findings.append(Finding(str(text), remedy, serious=False))

    @property
    def problems(self) -> int:
        """How many findings have to be mended."""
        return sum(finding.serious for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """The same as plain values."""
        findings = [asdict(finding) for finding in self.findings]
        return {"model": self.model, "healthy": not self.problems, **self.facts, "findings": findings}


def show(health: Health, console: Console) -> None:
    """Print the facts as a table, then the findings, each with its remedy."""
    made = Table(title=escape(health.model), title_justify="left", show_header=False)
    made.add_column(style="bold")
    made.add_column()
    made.add_column(overflow="fold")
    for section, facts in health.facts.items():
        for place, (what, value) in enumerate(facts.items()):
            made.add_row("" if place else section, what, escape(value))
        made.add_section()
    console.print(made)
    for finding in sorted(health.findings, key=lambda finding: not finding.serious):
        word, colour = ("problem", "red") if finding.serious else ("note", "yellow")
        console.print(f"[{colour}]{word}[/]: {escape(finding.text)}", soft_wrap=True, highlight=False)
        console.print(f"  remedy: {escape(finding.remedy)}", soft_wrap=True, highlight=False)
    if not health.findings:
        console.print("nothing to complain of")
