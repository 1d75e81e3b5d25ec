"""Who races whom: heats of contestants, ours first in every one of them."""

import sys

from benchmarks.race import Contestant

# What a user who knows malloc and torch gets, and `tutelage` does by itself: freed memory stays with the
# process, in huge pages.
KEPT = [
    f"GLIBC_TUNABLES=glibc.malloc.mmap_threshold={2**32 - 1}:glibc.malloc.trim_threshold={2**33}",
    "THP_MEM_ALLOC_ENABLE=1",
]
RIVALS = {
    "pretrain15m": ["transformers", "litgpt", "nanogpt"],
    "pretrain110m": ["transformers", "litgpt", "nanogpt"],
    "sft": ["trl"],
}


def heats(case: str, rivals: list[str], peers: str, *, tiny: bool) -> list[list[Contestant]]:
    """One heat for each rival that this case has: all at once would not fit a small machine's memory."""
    found = [rival for rival in RIVALS[case] if rival in rivals]
    return [
        _sft(peers, tiny=tiny)
        if rival == "trl"
        else _pretraining(case, rival, peers, tiny=tiny, profiled=rival == found[0])
        for rival in found
    ]


def needs_peers(cases: list[str], rivals: list[str]) -> bool:
    """Whether anything beyond our own dependencies is raced against: nanoGPT's loop is written here."""
    return any(rival in rivals and rival != "nanogpt" for case in cases for rival in RIVALS.get(case, []))


def _pretraining(case: str, rival: str, peers: str, *, tiny: bool, profiled: bool) -> list[Contestant]:
    small = ["--tiny"] if tiny else []
    theirs = {
        "transformers": ("transformers.Trainer", [peers, "-m", "benchmarks.peers", "hugging_face", case]),
        "litgpt": ("litgpt, compiled", [peers, "-m", "benchmarks.litgpt_loop", case]),
        "nanogpt": ("nanoGPT's loop, compiled", [sys.executable, "-m", "benchmarks.plain", case]),
    }
    name, command = theirs[rival]
    return [
        _ours(case, tiny=tiny, profiled=profiled),
        Contestant(name, [*command, *small]),
        Contestant(f"{name}, memory kept", ["env", *KEPT, *command, *small]),
    ]


def _sft(peers: str, *, tiny: bool) -> list[Contestant]:
    small = ["--tiny"] if tiny else []
    command = [peers, "-m", "benchmarks.peers"]
    return [
        _ours("sft", tiny=tiny, profiled=True),
        Contestant("tutelage", [sys.executable, "-m", "benchmarks.ours", "sft", *small]),
        Contestant("TRL SFTTrainer, padded", [*command, "trl_padded", "sft", *small]),
        Contestant("TRL SFTTrainer, best-fit packed", [*command, "trl_packed", "sft", *small]),
    ]


def _ours(case: str, *, tiny: bool, profiled: bool) -> Contestant:
    flags = ["--compile", *(["--profile"] if profiled else []), *(["--tiny"] if tiny else [])]
    return Contestant("tutelage --compile", [sys.executable, "-m", "benchmarks.ours", case, *flags])
