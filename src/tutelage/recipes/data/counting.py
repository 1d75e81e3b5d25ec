"""A data set read and counted for `tutelage data stats`: what its rows say, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import UserError
from tutelage.recipes.saying import say

if TYPE_CHECKING:
    import numpy as np

    from tutelage.data.cut import CutReport
    from tutelage.data.paths import DataPath
    from tutelage.data.sources import Source
    from tutelage.data.stats import Tally
    from tutelage.data.store import SampleStore
    from tutelage.recipes.data.stats import DataStatsConfig


@dataclass(slots=True)
class Split:
    """A data set that was counted: the training data, or what is held out."""

    tally: Tally
    bad_rows: int
    store: SampleStore | None = None  # where tokens are counted
    report: CutReport | None = None  # what would be cut

    @property
    def lengths(self) -> np.ndarray:
        """Of each row: tokens, or words."""
        import numpy as np

        return np.array(self.tally.words) if self.store is None else self.store.lengths

    def tokens_of_roles(self) -> dict[str, int]:
        """How many tokens each role has."""
        import numpy as np

        from tutelage.text.roles import ROLES

        assert self.store is not None
        counts = sum(
            (np.bincount(s.roles, minlength=len(ROLES)) for s in self.store.shards), np.zeros(5, int)
        )
        return dict(zip(ROLES, counts.tolist(), strict=True))


def counted(config: DataStatsConfig, name: Literal["train", "val"]) -> Split:
    """Read and count the training data, or what is held out."""
    from tutelage.data.cut import cut
    from tutelage.data.dataset import encode_paths
    from tutelage.data.paths import find_data
    from tutelage.data.sources import recognised

    train = name == "train"
    amounts = config.train_num_samples if train else config.val_num_samples
    files = find_data(
        config.train_data_paths if train else config.val_data_paths,
        config.train_data_splits if train else config.val_data_splits,
        shapes=config.train_data_shapes if train else config.val_data_shapes,
        fields=config.data_fields,
        cache_dir=config.cache_dir,
        log=say,
        flag=f"--{name}_data_splits",
    )
    sources = recognised(files)
    ranked = sources[0].kind == "ranked"
    split = _tallied(files, sources, amounts, name, skip_bad_rows=config.skip_bad_rows)
    if config.counts_with is None:
        return split
    if any(source.kind == "prompt" for source in sources):
        raise UserError("nothing of prompts alone is learned; without ckpt_paths their words are counted")
    tokenizer, template = _text_of(config, split.tally)
    split.store, faults = encode_paths(
        files,
        num_samples=amounts,
        template=template,
        tokenizer=tokenizer,
        skip_bad_rows=config.skip_bad_rows,
        workers=config.num_data_workers,
        cache_dir=config.cache_dir,
        log=say,
        split=name,
        ranked=ranked,
    )
    if config.max_seq_len is not None:
        length, too_long = config.max_seq_len, config.too_long
        _, split.report = cut(
            split.store, max_seq_len=length, too_long=too_long, faults=faults, ranked=ranked
        )
    return split


def _tallied(
    files: list[DataPath],
    sources: list[Source],
    amounts: tuple[float, ...],
    name: str,
    *,
    skip_bad_rows: bool,
) -> Split:
    from tutelage.data.faults import Faults
    from tutelage.data.read import sample_together, scan
    from tutelage.data.stats import Tally

    if amounts and len(amounts) != len(files):
        raise UserError(
            f"--{name}_num_samples has {len(amounts)} values for {len(files)} paths; give one each"
        )
    scanned = [scan(source) for source in sources]
    faults = Faults()
    for rows in scanned:
        faults.extend(rows.faults)
    if not skip_bad_rows:
        faults.refuse()
    tally = Tally()
    for number, amount in enumerate(amounts or [-1.0] * len(files)):
        parts = [rows for rows in scanned if rows.source.number == number]
        for rows in sample_together(parts, amount, str(files[number]), f"--{name}_num_samples"):
            tally.add(rows)
    return Split(tally, faults.count)


def _text_of(config: DataStatsConfig, tally: Tally) -> Any:
    """The tokenizer, and a template if there are conversations to render."""
    from tutelage.checkpoint.tokenizer import load_tokenizer
    from tutelage.text.jinja_template import template_of

    assert config.counts_with is not None
    tokenizer = load_tokenizer(config.counts_with)
    if not any(tally.messages):
        return tokenizer, None
    return tokenizer, template_of(tokenizer, config.template_config)
