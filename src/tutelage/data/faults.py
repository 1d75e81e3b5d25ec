"""What is wrong with the rows of data files: counted, the first named, and refused all at once."""

from dataclasses import dataclass, field

from tutelage.errors import UserError

FAULTS_NAMED = 10


@dataclass(slots=True)
class Faults:
    """Bad rows: all are counted, the first ten are described as `place: reason`."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Count a row; `place` is its `file:line`."""
        self.count += 1
        if len(self.named) < FAULTS_NAMED:
            self.named.append(f"{place}: {reason}")

    def extend(self, other: "Faults") -> None:
        self.count += other.count
        self.named = (self.named + other.named)[:FAULTS_NAMED]

    def refuse(self) -> None:
        """Raise what was found, if anything was."""
        if not self.count:
            return
        more = self.count - len(self.named)
        raise UserError(
            f"{self.count:,} bad row{'s' if self.count > 1 else ''} in the data; mend or remove "
            f"{'them' if self.count > 1 else 'it'}, or count and skip with --skip_bad_rows:\n  "
            + "\n  ".join(self.named)
            + (f"\n  and {more:,} more" if more else "")
        )
