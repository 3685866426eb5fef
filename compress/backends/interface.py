"""What every runtime can do for a meter: the seam between an artifact and a number.

A runtime implements `logits_chunks`, `prefill` and `decode`; log-probabilities and generation are derived from
these here, once, so two runtimes never differ by how they are asked.

Shapes: B sequences, T positions, C positions of a chunk, V vocabulary, S past plus new positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.backends.prefixes import PrefixedBatch
from compress.errors import InputError
from compress.plugins import StepConfig
from compress.records import Artifact

Cache = Any
"""A runtime's own key-value cache. Opaque: hand it back, never look inside."""


class OpenOptions(StepConfig):
    """How to open an artifact."""

    device: str = "auto"
    """``auto`` (CUDA when there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    num_threads: int | None = None
    """CPU threads the runtime may use; ``None`` keeps its default."""
    widened: bool = False
    """Compute in fp32 what is stored in narrower floats, where the device is slow in these: for scores, which are the
    same weights' with less rounding. Time and memory are measured as stored."""


class BackendModule(Protocol):
    """A file of this folder: the artifact kinds it opens, and how. One whose runtime is made for one device names it:
    ``DEVICE = "cpu"``."""

    KINDS: tuple[str, ...]

    def open(self, artifact: Artifact, options: OpenOptions) -> "Backend": ...


class Backend(ABC):
    """An opened model."""

    runtime: str
    """What computes, for the record: ``transformers 5.23.0, torch 2.13.0, bfloat16, cpu``."""
    vocabulary: int
    """Number of token ids the model can score (V)."""
    num_positions: int
    """Longest sequence it accepts."""
    on_cuda: bool = False
    """Whether it computes on a GPU, which waits when the processor does not launch work fast enough."""

    fewest_positions: int = 1
    """Positions that a call for their logits is worth: more where each costs a copy of the cache."""

    shares_prefixes: bool = False
    """Whether `logits_after` reads a prefix once, with what reading every row whole would give."""

    @abstractmethod
    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        """Yield fp32 next-token logits ``[B, C, V]`` for successive runs of at most `chunk` positions.

        `mask_BT` is 1 at real tokens; padding may stand on either side. The whole ``[B, T, V]`` never exists.
        """

    @abstractmethod
    def prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Cache]:
        """Read a left-padded batch; return the last position's fp32 logits ``[B, V]`` and the cache."""

    @abstractmethod
    def decode(self, ids_B1: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Read one more token a sequence (`mask_BS` covers past and new); return logits ``[B, V]``, cache."""

    def logits_at(
        self, ids_BT: Tensor, mask_BT: Tensor, rows_N: Tensor, columns_N: Tensor, chunk: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield which of N places were reached ``[M]`` and their logits ``[M, V]``, until all have been.

        A place is a row and a column of the batch; `chunk` is of `logits_chunks`.
        """
        return at_places(self.logits_chunks(ids_BT, mask_BT, chunk), rows_N, columns_N)

    def logits_after(
        self, batch: PrefixedBatch, rows_N: Tensor, columns_N: Tensor, chunk: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `logits_at` yields, of rows whose prefixes are read once each where `shares_prefixes` says so.

        A place is a row and a column of what follows its prefix. Here every row is read whole.
        """
        ids_BS = torch.cat([batch.prefix_ids[batch.prefix_of_row], batch.ids], dim=1)
        columns_N = columns_N + batch.prefix_ids.shape[1]
        return self.logits_at(ids_BS, batch.whole_mask(), rows_N, columns_N, chunk)

    def close(self) -> None:  # noqa: B027  a runtime without resources has nothing to do
        """Free what the runtime holds."""

    def token_log_probs(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``log p(ids[t] | ids[<t])`` in fp32 and whether ids[t] was the greedy choice, both ``[B, T]``.

        Position 0 and padded positions hold 0 and False.
        """
        B, T = ids_BT.shape
        log_probs_BT = torch.zeros(B, T)
        greedy_BT = torch.zeros(B, T, dtype=torch.bool)
        start = 0
        for logits_BCV in self.logits_chunks(ids_BT, mask_BT):
            stop = min(start + logits_BCV.shape[1], T - 1)
            if stop <= start:
                break
            here_BCV = logits_BCV[:, : stop - start]
            targets_BC = ids_BT[:, start + 1 : stop + 1].to(here_BCV.device)
            chosen_BC = here_BCV.gather(-1, targets_BC[..., None])[..., 0] - here_BCV.logsumexp(-1)
            log_probs_BT[:, start + 1 : stop + 1] = chosen_BC.cpu()
            greedy_BT[:, start + 1 : stop + 1] = (here_BCV.argmax(-1) == targets_BC).cpu()
            start = stop
        real_BT = mask_BT.bool().cpu()
        real_BT[:, 1:] &= mask_BT.bool().cpu()[:, :-1]
        real_BT[:, 0] = False
        return log_probs_BT.masked_fill(~real_BT, 0.0), greedy_BT & real_BT

    def generate(
        self, ids_BT: Tensor, mask_BT: Tensor, new_tokens: int, stop_ids: frozenset[int] = frozenset()
    ) -> Tensor:
        """Return up to `new_tokens` greedy tokens ``[B, N]`` after a left-padded batch.

        Ends early once every sequence has produced one of `stop_ids`; what follows a stop is meaningless.
        """
        stopped_B = torch.zeros(len(ids_BT), dtype=torch.bool)
        tokens: list[Tensor] = []
        for next_B1 in self.greedy(ids_BT, mask_BT, new_tokens):
            tokens.append(next_B1)
            stopped_B |= torch.tensor([int(i) in stop_ids for i in next_B1[:, 0]])
            if bool(stopped_B.all()):
                break
        return torch.cat(tokens, dim=1)

    def greedy(self, ids_BT: Tensor, mask_BT: Tensor, new_tokens: int) -> Iterator[Tensor]:
        """Yield the greedy tokens that follow a left-padded batch, one a sequence at a time ``[B, 1]``, on the CPU."""
        logits_BV, cache = self.prefill(ids_BT, mask_BT)
        mask_BS = mask_BT
        for index in range(new_tokens):
            next_B1 = logits_BV.argmax(-1, keepdim=True).cpu()
            yield next_B1
            if index + 1 < new_tokens:
                mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(ids_BT), 1)], dim=1)
                logits_BV, cache = self.decode(next_B1, mask_BS, cache)

    def prepare(self, batch_size: int, num_positions: int) -> str:
        """Get ready for `greedy` to that many positions, prompt included; return how it will decode, for the record.

        The same tokens come without. Empty where nothing is to be prepared.
        """
        return ""


def at_places(chunks: Iterable[Tensor], rows_N: Tensor, columns_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, of each chunk of successive positions ``[B, C, V]``, which of N places are in it and their logits."""
    start = 0
    for logits_BCV in chunks:
        stop = start + logits_BCV.shape[1]
        which_M = ((columns_N >= start) & (columns_N < stop)).nonzero()[:, 0]
        yield which_M, logits_BCV[rows_N[which_M], columns_N[which_M] - start]
        start = stop


@runtime_checkable
class HeadApart(Protocol):
    """A backend whose head can be run apart from what is below it."""

    def last_states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return what enters the head ``[B, T, H]``, in the model's dtype and on its device."""

    def logits_of(self, states_BTH: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        """Yield what `logits_chunks` yields of a text, given its last states."""


class Encoder(Backend):
    """An opened model that reads a text as a whole and writes none.

    Its `logits_chunks` are its predictions at every position, the token there visible; batches are padded on the right.
    """

    @abstractmethod
    def encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the last hidden states ``[B, T, H]``: what an encoder is run for."""

    def prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Cache]:
        raise InputError("an encoder continues no text")

    def decode(self, ids_B1: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        raise InputError("an encoder continues no text")
