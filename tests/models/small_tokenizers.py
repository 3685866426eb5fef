"""One small tokenizer of every kind, trained on the demo world or made by hand, as folders `AutoTokenizer` reads."""

import json
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compress.data import world
from compress.data.tokenizer import Config, run
from tests.fakes import FakeContext

UNICODE = "Straße, naïve café — Ωμέγα 日本語 🙂🏽 \u200b\ttab\n\nend  \u00a0 two"
TEXTS = list(islice(world.documents("train", seed=0), 300))
HELD_OUT = list(islice(world.documents("heldout", seed=1), 60))
SPECIAL = ["<unk>", "<s>", "</s>"]


def write(kind: str, folder: Path) -> Path:
    """Write one of the `KINDS`; training is done once a process."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _files(kind).items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _files(kind: str) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        made = KINDS[kind](Path(folder))
        return {file.name: file.read_bytes() for file in made.iterdir()}


def demo(folder: Path) -> Path:
    run(None, Config(vocabulary=640), FakeContext(folder))
    return folder


def byte_level(folder: Path) -> Path:
    """GPT-2's kind, its special tokens last, as Qwen's and Llama 3's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return _save(tokenizer, folder, unk_token=None)


def sentencepiece(folder: Path) -> Path:
    """Llama 2's kind: bytes to fall back on, a merge for every way to build a token, merges as text."""
    trained = _pieces(trainers.BpeTrainer(vocab_size=500, show_progress=False), models.BPE())
    learned = sorted(trained["model"]["vocab"], key=trained["model"]["vocab"].__getitem__)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in learned
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    _save(tokenizer, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def unigram(folder: Path) -> Path:
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    content = _pieces(trainer, models.Unigram())
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return _save(tokenizer, folder)


def word_piece(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=marks, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks, strict=True))
    return _save(tokenizer, folder, bos_token=None, eos_token=None, **names)


KINDS = {
    "demo": demo,
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "word_piece": word_piece,
}


def _pieces(trainer, model) -> dict:
    """Train on texts whose words begin with a visible space; return the tokenizer's content."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainer)
    return json.loads(tokenizer.to_str())


def _save(tokenizer: Tokenizer, folder: Path, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    named = {key: value for key, value in named.items() if value is not None}
    content = {"tokenizer_class": "TokenizersBackend", "clean_up_tokenization_spaces": False, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder
