"""llama2.c's files read and run by hand, from its description of them and with none of our code."""

import struct
from pathlib import Path

import numpy as np

TENSORS = (  # of version 0, in order; None is there once, the others once a layer
    ("att_norm", "D"),
    ("wq", "QD"),
    ("wk", "KD"),
    ("wv", "KD"),
    ("wo", "DQ"),
    ("ffn_norm", "D"),
    ("w1", "FD"),
    ("w2", "DF"),
    ("w3", "FD"),
)


def read_v0(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """The header and the arrays of a version 0 file, every number of it accounted for."""
    raw = path.read_bytes()
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
    header = dict(zip(names, struct.unpack("<7i", raw[:28]), strict=True))
    numbers, place = np.frombuffer(raw[28:], "<f4"), 0
    head = header["dim"] // header["n_heads"]
    sizes = {"D": header["dim"], "Q": header["dim"], "K": header["n_kv_heads"] * head}
    sizes |= {"F": header["hidden_dim"], "L": header["n_layers"], "V": abs(header["vocab_size"])}
    sizes |= {"T": header["seq_len"], "C": head // 2}
    layout = [("embedding", "VD"), *[(name, "L" + shape) for name, shape in TENSORS]]
    layout += [("norm", "D"), ("cos", "TC"), ("sin", "TC")]
    layout += [("head", "VD")] if header["vocab_size"] < 0 else []
    arrays = {}
    for name, letters in layout:
        shape = [sizes[letter] for letter in letters]
        count = int(np.prod(shape))
        arrays[name] = numbers[place : place + count].reshape(shape).astype(np.float64)
        place += count
    assert place == len(numbers)
    return header, arrays


def logits_of(header: dict[str, int], arrays: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """(T, V): what run.c's forward pass computes, its rotary turning neighbours by the file's own tables."""
    n_heads, n_kv_heads = header["n_heads"], header["n_kv_heads"]
    T, C = len(tokens), header["dim"] // n_heads
    x = arrays["embedding"][tokens]
    for layer in range(header["n_layers"]):
        weights = {name: arrays[name][layer] for name, _ in TENSORS}
        h = norm(x, weights["att_norm"])
        q = turned(h @ weights["wq"].T, arrays, C).reshape(T, n_heads, C)
        k = turned(h @ weights["wk"].T, arrays, C).reshape(T, n_kv_heads, C)
        v = (h @ weights["wv"].T).reshape(T, n_kv_heads, C)
        out = np.zeros((T, n_heads, C))
        for head in range(n_heads):
            group = head // (n_heads // n_kv_heads)
            for t in range(T):
                scores = k[: t + 1, group] @ q[t, head] / np.sqrt(C)
                weight = np.exp(scores - scores.max())
                out[t, head] = weight @ v[: t + 1, group] / weight.sum()
        x = x + out.reshape(T, -1) @ weights["wo"].T
        h = norm(x, weights["ffn_norm"])
        gate = h @ weights["w1"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weights["w3"].T)) @ weights["w2"].T
    return norm(x, arrays["norm"]) @ arrays.get("head", arrays["embedding"]).T


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turned(x: np.ndarray, arrays: dict[str, np.ndarray], head_dim: int) -> np.ndarray:
    pairs = x.reshape(len(x), -1, head_dim // 2, 2)
    cos, sin = (arrays[name][: len(x), None] for name in ("cos", "sin"))
    even, odd = pairs[..., 0], pairs[..., 1]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def read_tokens(path: Path) -> tuple[list[bytes], list[float]]:
    """The entries of a tokenizer.bin, every byte of it accounted for."""
    raw = path.read_bytes()
    (longest,), place = struct.unpack("<I", raw[:4]), 4
    texts, scores = [], []
    while place < len(raw):
        score, size = struct.unpack("<fi", raw[place : place + 8])
        texts.append(raw[place + 8 : place + 8 + size])
        scores.append(score)
        place += 8 + size
    assert place == len(raw)
    assert longest == max(map(len, texts))
    return texts, scores


def encode(text: str, texts: list[bytes], scores: list[float]) -> list[int]:
    """What run.c makes of a prompt, BOS left out: a space, letters or their bytes, then the best merges."""
    ids = {content: token for token, content in reversed(list(enumerate(texts)))}
    tokens = [ids[b" "]] if text else []
    for letter in text:
        content = letter.encode()
        tokens += [ids[content]] if content in ids else [byte + 3 for byte in content]
    while True:
        best, at = -1e10, None
        for place, (left, right) in enumerate(zip(tokens, tokens[1:], strict=False)):
            merged = ids.get(texts[left] + texts[right])
            if merged is not None and scores[merged] > best:
                best, at = scores[merged], place
        if at is None:
            return tokens
        tokens[at : at + 2] = [ids[texts[tokens[at]] + texts[tokens[at + 1]]]]
