"""Trains the tokenizer: `python -m data.train_tokenizer --input datasets/moving_shapes --output tokenizer.model`.

A SentencePiece BPE model over lower-cased text (nmt_nfkc_cf), trained on the captions of the training split alone, and
on training questions where they are given: without them their words are spelled, three times as long.
BPE rather than unigram: its merges make each frequent word one piece, so masking a piece masks a word; on the few
hundred captions of a small data set unigram keeps splitting words that occur in every caption. A word model could not
spell words that training never showed, as questions have them.
"""

import argparse
import io
import os
import pathlib
import re
import sys
from collections.abc import Sequence

import sentencepiece

from vlp_jax.files import write_atomically
from vlp_jax.input import table_readers
from vlp_jax.input.annotations import annotation_tables
from vlp_jax.input.shards import ShardSource
from vlp_jax.input.sources import require
from vlp_jax.types import UserError

PAD, UNK, CLS, SEP, MASK = range(5)  # ids; [CLS], [SEP] and [MASK] are control symbols, which no text can produce
MAX_VOCABULARY = 8000
# Characters that are always in the vocabulary, so that an English question never seen in training is spelled rather
# than unknown.
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-&/"


def train(captions: Sequence[str], vocabulary_size: int = 0) -> bytes:
    """Returns a serialised SentencePiece model; the same captions give the same bytes.

    Args:
      captions: training texts; empty ones are ignored.
      vocabulary_size: largest number of pieces, specials included; 0 for at most 8000. A small corpus supports fewer
        (BPE stops when every word is one piece), and then the model has fewer.

    Raises:
      UserError: no caption has any text, or `vocabulary_size` is too small for the characters of the captions.
    """
    texts = [text for text in (" ".join(caption.split()) for caption in captions) if text]  # a newline ends a sentence
    if not texts:
        raise UserError(f"no text in {len(captions)} captions: expected at least one caption that is not empty")
    size = vocabulary_size or MAX_VOCABULARY
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type="bpe",
            hard_vocab_limit=False,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],  # get the first free ids: 2, 3 and 4
            normalization_rule_name="nmt_nfkc_cf",
            character_coverage=1.0 if len(texts) < 100_000 else 0.9995,  # a large corpus has stray characters
            required_chars=_ALPHABET,
            max_sentence_length=max(4096, *(len(text.encode()) + 1 for text in texts)),  # longer ones are dropped
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if "Vocabulary size is smaller than required_chars" not in str(error):
            raise
        # It quotes both numbers at the end, "... required_chars. 10 vs 55. Increase ...".
        needed = re.search(r"\d+ vs (\d+)", str(error))
        room = f"at least {needed[1]}" if needed else "more"
        raise UserError(
            f"--vocab-size {size}: expected {room}, to hold the special symbols and every character of the captions"
        ) from error
    return model.getvalue()


def read_captions(
    path: str | os.PathLike, caption_column: str = "caption", split: str = "", caption_key: str = ""
) -> list[str]:
    """Reads the training captions of a data set, or of a text file.

    Args:
      path: a directory that holds dataset_info.json; one table (.csv, .tsv or .jsonl); tar shards (a directory of them,
        a glob, or a range {00000..00099}.tar); or any other file, which is read as UTF-8 text, a caption a line.
      caption_column: tables: the column that holds the captions.
      split: TFDS: the split's name, "train" where empty. Tables: `all` or `column=value|value`; where empty,
        `split=train` if there is a column `split`, else all rows. Shards: as `config.input.split`. Not for text.
      caption_key: shards: '' for KEY.txt, otherwise a key of KEY.json.

    Raises:
      UserError: the input, the column or the split is missing, or has no caption.
    """
    path = pathlib.Path(path)
    kind = _kind(path)
    if kind == "tfds":
        captions = _read_tfds(path, split or "train")
    elif kind == "table":
        captions = _read_table(str(path), caption_column, split)
    elif kind == "shards":
        source = ShardSource(str(path), split or "all", caption_key=caption_key)
        captions = [source.annotation(i).caption for i in range(len(source))]
    elif split:
        raise UserError(f"--split {split!r}: {path} is read as text, which has no splits; leave it out")
    else:
        try:
            captions = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"--input {path}: expected UTF-8 text, but {error}") from error
    # What is not UTF-8 was replaced, and is no text to learn from.
    whole = [caption for caption in captions if "\ufffd" not in caption]
    if len(whole) < len(captions):
        print(f"{path}: {len(captions) - len(whole)} captions are not UTF-8 and left out", file=sys.stderr)
    if not any(map(str.strip, whole)):
        raise UserError(f"--input {path} has no caption: expected at least one that is not empty")
    return whole


def _kind(path: pathlib.Path) -> str:
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return "tfds"
    if path.suffix in (".tar", ".gz", ".tgz") or (path.is_dir() and any(path.glob("*.tar"))):
        return "shards"  # compressed ones are refused there
    if path.is_dir():
        raise UserError(
            f"--input {path} has no dataset_info.json and no .tar file: expected a TFDS directory, tar shards, a table "
            "(.csv, .tsv, .jsonl) or a text file"
        )
    if not path.exists():
        raise UserError(
            f"--input {path} does not exist: expected a TFDS directory, tar shards, a table (.csv, .tsv, .jsonl) or a "
            "text file"
        )
    return "table" if path.suffix.lower() in table_readers.SUFFIXES else "text"


def _read_tfds(path: pathlib.Path, split: str) -> list[str]:
    import tensorflow_datasets as tfds  # only this input needs it

    builder = tfds.builder_from_directory(path)
    if split not in builder.info.splits:
        tables = [str(path / f"{name}.jsonl") for name in annotation_tables(path, "pretrain")]
        hint = f"; the captions of an evaluation set are in tables: --input {' or '.join(tables)}" if tables else ""
        raise UserError(f"--split {split!r}: {path} has {', '.join(builder.info.splits)}{hint}")
    if "caption" not in builder.info.features:
        raise UserError(f"--input {path}: expected a feature `caption`, found {', '.join(builder.info.features)}")
    source = builder.as_data_source(split=split)
    return [source[i]["caption"].decode("utf-8", "replace") for i in range(len(source))]


def _read_table(file: str, column: str, split: str) -> list[str]:
    columns = table_readers.columns(file)
    if not split:
        split = "split=train" if "split" in columns else "all"
    key, equals, values = split.partition("=")
    if split != "all" and not equals:
        raise UserError(f"--split {split!r}: expected all or column=value|value for {file}")

    def check(present: list[str]) -> None:
        require(present, (column,), f"--caption-column: {file}", "column")
        if equals:
            require(present, (key,), f"--split: {file}", "column")

    check(columns)
    captions: list[str] = []
    found: set[str] = set()
    wanted = set(values.split("|"))
    # `dict.fromkeys`: the captions may be the column that the split looks at.
    names = list(dict.fromkeys([column, *([key] if equals else [])]))
    for cells in table_readers.read(file, names, check, table_readers.Replaced()):
        texts = cells[column].to_pylist()
        if equals:
            kinds = cells[key].to_pylist()
            found |= set(kinds)
            texts = [text for text, kind in zip(texts, kinds) if kind in wanted]
        captions += texts
    if equals and not wanted & found:
        raise UserError(f"--split {split!r} matches no row of {file}: {key!r} has {', '.join(sorted(found)[:20])}")
    return captions


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, trains, writes the model and prints one line; returns 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m data.train_tokenizer", description="Trains the tokenizer.")
    parser.add_argument("--input", required=True, help="TFDS directory, table, tar shards, or text, a caption a line")
    parser.add_argument("--output", required=True, help="the .model file to write")
    parser.add_argument("--caption-column", default="caption", help="tables: the captions' column (%(default)s)")
    parser.add_argument("--caption-key", default="", help="shards: key of a sample's .json; its .txt by default")
    parser.add_argument(
        "--split",
        default="",
        help="TFDS: a split (train); tables: all or column=value|value (split=train where there is such a column)",
    )
    parser.add_argument(
        "--questions", default="", help="a table of training questions (column question) to learn from as well"
    )
    parser.add_argument(
        "--vocab-size", type=int, default=0, help=f"most pieces ({MAX_VOCABULARY}, or what the corpus supports)"
    )
    given = parser.parse_args(arguments)
    try:
        if given.vocab_size < 0:
            raise UserError(f"--vocab-size {given.vocab_size}: expected a number above 0, or 0 for the default")
        if pathlib.Path(given.output).is_dir():
            raise UserError(f"--output {given.output} is a directory: expected the name of the .model file to write")
        texts = read_captions(given.input, given.caption_column, given.split, given.caption_key)
        what = f"{len(texts)} captions"
        if given.questions:
            questions = _read_table(given.questions, "question", "all")
            what += f" and {len(questions)} questions"
            texts += questions
        model = train(texts, given.vocab_size)
        output = pathlib.Path(given.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, model)  # `make` takes a file that exists for a finished one
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    print(f"wrote {output}: {size} pieces from {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
