"""Any `Backend` as a model of lm-eval, at the speed of the backend.

Requests become rows of token ids (`request_rows`): few of them, and what several begin with is read once where the
backend can go on from it. Rows run in batches of a fixed size, halved where memory is too small; only the positions
that are asked for pass through the fp32 log-softmax.

Texts are cut into tokens as lm-eval's own Hugging Face model does: context and continuation are tokenized as
one string and parted where the context alone would end, the tokenizer adding its special tokens; an empty
context becomes the beginning-of-sequence token.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.backends.interface import Backend
from compress.backends.positions import padded
from compress.data.chat import dated
from compress.errors import InputError
from compress.meters.divergence import chunk_positions
from compress.meters.halving import halved, said
from compress.meters.request_rows import Query, Row, prefixed, shared_rows, with_prefixes

MAX_NEW_TOKENS = 256
"""Answer length where a task sets none, as in lm-eval."""

T = TypeVar("T")
OnProgress = Callable[[int, int], None]


class BackendLM(LM):  # type: ignore[misc]  # lm-eval ships no types
    """Answers lm-eval's requests from an opened artifact; greedy, fp32 log-probabilities."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        on_progress: OnProgress = lambda done, total: None,
        end_ids: Collection[int] = (),
    ) -> None:
        """`end_ids`: what ends an answer besides the tokenizer's end of sequence (`compress.models.special_ids`)."""
        super().__init__()
        self.backend = backend
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.on_progress = on_progress
        self.gave_way: list[str] = []
        """Batches that were halved, for the record."""
        eos = tokenizer.eos_token_id
        self.end_ids = frozenset(end_ids) | (frozenset() if eos is None else {int(eos)})
        self._num_appended = num_appended(tokenizer)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise InputError("the tokenizer has neither a beginning- nor an end-of-sequence token")
        return int(eos if bos is None else bos)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval would name rendered requests by, if it kept them."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the tokenizer's chat template writes it; to a template it is always the same day.

        Raises `InputError` for a tokenizer without one. A template without a system's turn is given none.
        """
        try:
            own = self.tokenizer.get_chat_template()
        except ValueError:
            own = ""
        if not own:
            raise InputError(
                "tasks are to be asked by a chat template, and the model's tokenizer has no chat template, or several "
                "and none called 'default'. A pretrained model has none: leave it out"
            )
        template = dated(own)
        heard = [message for message in chat_history if message["role"] != "system"]
        for history in (chat_history, heard):
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        history,
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=not add_generation_prompt,
                    )
                )
            except TemplateError as error:
                refused = error
        raise InputError(f"the model's chat template refuses a task's item: {refused}") from refused

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        return self._answer(self._pairs([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        texts = self._encode([request.args[0] for request in requests])
        windows = [
            list(rolling_windows(self.prefix_token_id, ids, self.backend.num_positions)) for ids in texts
        ]
        answers = iter(self._answer([window for text in windows for window in text]))
        return [sum(next(answers)[0] for _ in text) for text in windows]

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Generate greedily until a stop string, in batches of requests with equal settings."""
        texts: dict[int, str] = {}
        order = sorted(
            range(len(requests)), key=lambda i: (repr(requests[i].args[1]), -len(requests[i].args[0]))
        )
        while order:
            settings = requests[order[0]].args[1]
            batch = [i for i in order[: self.batch_size] if requests[i].args[1] == settings]

            def write(size: int, batch: list[int] = batch, settings: dict[str, Any] = settings) -> list[str]:
                return self.generate([requests[i].args[0] for i in batch[:size]], settings)

            written = self._fitting(write, len(batch))
            texts.update(zip(batch, written, strict=False))
            order = order[len(written) :]
            self.on_progress(len(texts), len(requests))
        return [texts[index] for index in range(len(requests))]

    def generate(self, prompts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """Return what follows each prompt, up to the first stop string. Raises `InputError` for sampling."""
        settings = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        if settings.get("do_sample"):
            raise InputError("tasks that sample their answers are not measured; set do_sample: false")
        eos = self.tokenizer.eos_token
        stops = [stop for stop in handle_stop_sequences(settings.get("until"), eos=eos) if stop]
        # A special token is no text: as a stop string it is an id.
        special = set(self.tokenizer.all_special_tokens)
        ends = self.end_ids | {
            self.tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in special
        }
        new_tokens = min(settings["max_gen_toks"], self.backend.num_positions - 1)
        room = self.backend.num_positions - new_tokens
        contexts = [tuple(ids)[-room:] or (self.prefix_token_id,) for ids in self._encode(prompts)]
        texts = [""] * len(prompts)
        for tokens_BN in self._greedy(*padded(contexts, left=True), new_tokens):
            written = [before_end(row, ends) for row in tokens_BN.tolist()]
            texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
            ended = [len(ids) < tokens_BN.shape[1] for ids in written]
            if all(
                end or any(stop in text for stop in stops) for end, text in zip(ended, texts, strict=True)
            ):
                break
        return [before_first(text, stops) for text in texts]

    @torch.inference_mode()
    def _greedy(self, ids_BT: Tensor, mask_BS: Tensor, new_tokens: int, every: int = 8) -> Iterator[Tensor]:
        """Yield the tokens written so far ``[B, N]``, after every few steps and at the end."""
        tokens: list[Tensor] = []
        for next_B1 in self.backend.greedy(ids_BT, mask_BS, new_tokens):
            tokens.append(next_B1)
            if len(tokens) % every == 0 or len(tokens) == new_tokens:
                yield torch.cat(tokens, dim=1)

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Tokenize contexts and continuations. Spaces that end a context begin its continuation instead."""
        contexts = [context.rstrip() for context, _ in pairs]
        wholes = [context + continuation for context, continuation in pairs]
        lengths = {text: len(ids) for text, ids in self._encode_distinct(contexts).items()}
        encoded = self._encode_distinct(wholes)
        bare = self._encode_distinct(
            [whole for whole, context in zip(wholes, contexts, strict=True) if not context], False
        )
        queries = []
        for whole, context in zip(wholes, contexts, strict=True):
            if context:
                ids = encoded[whole]
                # A merge across the border can leave the continuation no token of its own: it gets the last.
                queries.append(self._fitted(ids, max(1, len(ids) - lengths[context])))
            else:
                prefix = [] if bare[whole][:1] == [self.prefix_token_id] else [self.prefix_token_id]
                ids = prefix + bare[whole]
                queries.append(self._fitted(ids, len(ids) - 1))
        return queries

    def _fitted(self, ids: Sequence[int], num_targets: int) -> Query:
        """Drop the oldest tokens of what is longer than the model reads."""
        ids = tuple(ids)[-(self.backend.num_positions + 1) :]
        return Query(ids, min(num_targets, len(ids) - 1))

    def _encode_distinct(self, texts: Iterable[str], add_special_tokens: bool = True) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self._encode(distinct, add_special_tokens), strict=True))

    def _encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Tokenize in one call. A text that brings its own beginning-of-sequence token gets no second one.

        What a tokenizer appends is left out: a text that goes on does not end in an end-of-sequence token.
        """
        if not texts:
            return []
        bos = self.tokenizer.decode([self.prefix_token_id])
        has_own = [not add_special_tokens or text.startswith(bos) for text in texts]
        encoded: list[list[int]] = [[] for _ in texts]
        for bare in (False, True):
            chosen = [index for index, own in enumerate(has_own) if own == bare]
            if chosen:
                ids = self.tokenizer(
                    [texts[i] for i in chosen], add_special_tokens=not bare, return_attention_mask=False
                )
                drop = 0 if bare else self._num_appended
                for index, row in zip(chosen, ids["input_ids"], strict=True):
                    encoded[index] = row[: len(row) - drop]
        return encoded

    @torch.inference_mode()
    def _answer(self, queries: Sequence[Query]) -> list[tuple[float, bool]]:
        """Return each query's summed log-probability, and whether greedy decoding would have written it."""
        log_probs = torch.zeros(len(queries), dtype=torch.float64)
        greedy = torch.ones(len(queries), dtype=torch.bool)
        rows = shared_rows(queries)
        if self.backend.shares_prefixes:
            rows = with_prefixes(rows, queries, self.batch_size)
        num_sharing = sum(row.num_shared > 0 for row in rows)
        start = 0
        while start < len(rows):
            # Rows that share are at the beginning: no batch has others too.
            stop = num_sharing if start < num_sharing else len(rows)

            def answer(size: int, start: int = start) -> tuple[int, list[tuple[Tensor, Tensor, Tensor]]]:
                return size, self._answer_batch(rows[start : start + size], queries)

            size, parts = self._fitting(answer, min(self.batch_size, stop - start))
            for index, chosen, is_greedy in parts:
                log_probs.index_add_(0, index, chosen)
                greedy[index[~is_greedy]] = False
            start += size
            self.on_progress(start, len(rows))
        return list(zip(log_probs.tolist(), greedy.tolist(), strict=True))

    def _fitting(self, work: Callable[[int], T], most: int) -> T:
        """Return the work for so many at once, or for the fewer that memory has room for: no later batch is larger."""
        done, size = halved(work, most)
        if size < most:
            self.gave_way.append(said(most, size))
            self.batch_size = size
        return done

    def _answer_batch(
        self, rows: Sequence[Row], queries: Sequence[Query]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return a target's query, its log-probability and whether it was the likeliest, part by part of the batch."""
        # One column a target: query, token, and which of the distinct places predicts it.
        targets: list[tuple[int, int, int]] = []
        places: list[tuple[int, int]] = []
        """Row and position."""
        found: dict[int, int] = {}
        """Of a beginning of rows, the place that goes on from it."""
        for number, (row, beginnings) in enumerate(zip(rows, _beginnings(rows), strict=True)):
            for index in row.queries:
                query = queries[index]
                for offset, token in enumerate(query.ids[-query.num_targets :]):
                    position = query.first_asked + offset
                    place = found.setdefault(beginnings[position], len(places))
                    if place == len(places):
                        places.append((number, position))
                    targets.append((index, token, place))
        index_N, token_N, place_N = torch.tensor(targets).unbind(1)
        rows_K, columns_K = torch.tensor(places).unbind(1)
        parts = []
        for which_M, logits_MV in self._logits_at(rows, rows_K, columns_K):
            reached_K = torch.full((len(places),), -1)
            reached_K[which_M] = torch.arange(len(which_M))
            chosen_N = (reached_K[place_N] >= 0).nonzero()[:, 0]
            at_N, token_of_N = reached_K[place_N[chosen_N]], token_N[chosen_N]
            logits_MV = logits_MV.float()
            where = at_N.to(logits_MV.device), token_of_N.to(logits_MV.device)
            log_prob_N = (logits_MV[where] - logits_MV.logsumexp(-1)[where[0]]).cpu().double()
            parts.append((index_N[chosen_N], log_prob_N, logits_MV.argmax(-1).cpu()[at_N] == token_of_N))
        return parts

    def _logits_at(
        self, rows: Sequence[Row], rows_N: Tensor, columns_N: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield which of N positions of a batch were reached ``[M]`` and their logits ``[M, V]``."""
        chunk = chunk_positions(len(rows), [self.backend])
        batch = prefixed(rows)
        if batch is None:
            ids_BT, mask_BT = padded([row.inputs for row in rows], left=False)
            return self.backend.logits_at(ids_BT, mask_BT, rows_N, columns_N, chunk)
        num_shared_B = torch.tensor([row.num_shared for row in rows])
        return self.backend.logits_after(batch, rows_N, columns_N - num_shared_B[rows_N], chunk)


def _beginnings(rows: Sequence[Row]) -> list[list[int]]:
    """Return a number for every position of every row: the same where all tokens up to it are the same."""
    known: dict[tuple[int, int], int] = {}
    numbers = []
    for row in rows:
        before, of_row = -1, list[int]()
        for token in row.inputs:
            before = known.setdefault((before, token), len(known))
            of_row.append(before)
        numbers.append(of_row)
    return numbers


def rolling_windows(prefix: int, ids: Sequence[int], num_positions: int) -> Iterator[Query]:
    """Cut a text into windows that predict each token once; the last keeps a full context."""
    whole = (prefix, *ids)
    for start in range(1, len(whole), num_positions):
        stop = min(start + num_positions, len(whole))
        yield Query(whole[max(0, stop - num_positions - 1) : stop], stop - start)


def num_appended(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many special tokens a tokenizer puts after a text."""
    whole = tokenizer("a", return_attention_mask=False)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False, return_attention_mask=False)["input_ids"]
    starts = [n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare]
    return len(whole) - len(bare) - starts[0] if starts else 0


def before_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """Return the ids before the first that ends an answer."""
    return ids[: next((place for place, id in enumerate(ids) if id in ends), len(ids))]


def before_first(text: str, stops: Sequence[str]) -> str:
    """Return the text before the earliest of the stop strings."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
