"""The two sizes the items come in: that of the real job on a card, and one that a processor does in seconds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compress.data.batch import Batch
from compress.data.marks import positions

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
}  # fmt: skip
STUDENT_4B = LLAMA_8B | {
    "hidden_size": 3072, "intermediate_size": 8448, "num_attention_heads": 24, "num_key_value_heads": 6,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 259,
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Shapes and counts of one size."""

    device: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    sequence_length: int
    document_tokens: int
    """Tokens of each document packed into rows."""
    batch_rows: int
    """Rows of an optimizer step."""
    gram: int
    """Inputs of the linear map that elimination orders."""
    prompt_tokens: int
    new_tokens: int
    pair: dict[str, Any] = field(default_factory=dict)
    """A small model for what does not need the real one: two real layers, few ids."""

    @property
    def is_full(self) -> bool:
        return self.device != "cpu"


FULL = Scale(
    "cuda", LLAMA_8B, STUDENT_4B, 4096, 1024, batch_rows=8, gram=14_336, prompt_tokens=128, new_tokens=64,
    pair=STUDENT_4B | {"num_hidden_layers": 2, "vocab_size": 32_000},
)  # fmt: skip
TINY = Scale("cpu", SMALL, SMALL, 64, 24, batch_rows=4, gram=96, prompt_tokens=8, new_tokens=4, pair=SMALL)


def model(shape: dict[str, Any], device: str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """Return a Llama with random weights, made on the device."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=8192, dtype=dtype))
    finally:
        torch.set_default_dtype(before)


class Packed:
    """Rows of random ids, in documents of equal length that do not end where rows do."""

    def __init__(self, scale: Scale, vocabulary: int, num_sequences: int = 64) -> None:
        chance = torch.Generator().manual_seed(0)
        self.num_sequences, self.sequence_length = num_sequences, scale.sequence_length
        shape = (num_sequences, scale.sequence_length)
        self._ids = torch.randint(vocabulary, shape, generator=chance)
        places = torch.arange(num_sequences * scale.sequence_length).view(shape)
        self._starts = places % scale.document_tokens == 0

    def learning_batch(self, indices: list[int]) -> Batch:
        """Return rows with the place of each token in its document."""
        where = torch.from_numpy(positions(self._starts[indices].numpy()))
        return Batch(self._ids[indices], where, rows=torch.tensor(indices))


def milliseconds(work: Any, device: str, repeats: int = 5) -> float:
    """Return the median time of some work, after two that do not count."""
    import statistics
    import time

    times = []
    for turn in range(repeats + 2):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if turn >= 2:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def peak_bytes(device: str) -> int:
    """Return the most memory the card's tensors have taken; 0 on a processor."""
    return int(torch.cuda.max_memory_allocated()) if device != "cpu" else 0


def forget_peak(device: str) -> None:
    """Let the next peak begin with what is there now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def row(name: str, value: float, unit: str, **more: Any) -> Iterator[dict[str, Any]]:
    """Yield one figure."""
    yield {"name": name, "value": value, "unit": unit, **more}
