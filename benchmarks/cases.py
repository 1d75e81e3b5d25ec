"""What is trained and on which data: the same numbers for every contestant. Needs numpy and nothing else."""

from dataclasses import dataclass

import numpy as np

SEED = 0
ROW = 1024  # longest chat, and the row that packing fills
WARM_UP = 2  # steps of pretraining before the clock runs; fine-tuning warms up for a pass over its data


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama with tied embeddings; the default is the 15M model of llama2.c: 15,191,712 parameters."""

    dim: int = 288
    n_layers: int = 6
    n_heads: int = 6
    ffn_dim: int = 768
    vocab_size: int = 32000

    @property
    def parameters(self) -> int:
        block = 4 * self.dim**2 + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return self.vocab_size * self.dim + self.n_layers * block + self.dim

    def flops(self, tokens: int, mean_context: float) -> float:
        """Of a training step: 6 a parameter and token, and 12 a layer, dimension and visible key."""
        return tokens * (6 * self.parameters + 12 * self.n_layers * self.dim * mean_context)


@dataclass(frozen=True, slots=True)
class Settings:
    """A run small enough for a smoke test (`tiny`), or the one that is reported."""

    shape: Shape = Shape()
    rows: int = 32  # pretraining: rows a step
    length: int = 256  # pretraining: positions of a row
    chats: int = 64
    micro: int = 8  # fine-tuning: chats (TRL packed: rows of ROW) a step
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    wd: float = 0.1
    clip: float = 1.0


CASES = {
    "pretrain15m": Settings(),
    # llama2.c's 110M: 109,529,856 parameters. Fewer and no longer rows, so that a step on CPU ends soon.
    "pretrain110m": Settings(shape=Shape(768, 12, 12, 2048), rows=8),
    "sft": Settings(),
}
TINY = Settings(shape=Shape(32, 2, 4, 48, 61), rows=2, length=16, chats=4, micro=2)


def settings(case: str, *, tiny: bool) -> Settings:
    return TINY if tiny else CASES[case]


def documents(of: Settings) -> np.ndarray:
    """(8 steps of rows, length + 1) random tokens: the last of a row is only predicted."""
    draw = np.random.default_rng(SEED)
    return draw.integers(0, of.shape.vocab_size, (8 * of.rows, of.length + 1))


def chats(of: Settings) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, learned) of every chat: lengths log-uniform in 32 to 1024, the first third a prompt."""
    draw = np.random.default_rng(SEED)
    lengths = np.exp(draw.uniform(np.log(32), np.log(ROW), of.chats)).astype(int)
    return [(draw.integers(0, of.shape.vocab_size, n), (np.arange(n) >= n // 3).astype(int)) for n in lengths]
