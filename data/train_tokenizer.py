"""Trains the tokenizer: `python -m data.train_tokenizer --input datasets/moving_shapes --output tokenizer.model`.

A SentencePiece BPE model over lower-cased text (nmt_nfkc_cf), trained on the captions of the training split alone.
BPE rather than unigram: its merges make each frequent word one piece, so masking a piece masks a word; on the few
hundred captions of a small data set unigram keeps splitting words that occur in every caption. A word model could not
spell words that training never showed, as questions have them.
"""

import argparse
import csv
import difflib
import io
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import sentencepiece

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


def read_captions(path: str | os.PathLike, caption_column: str = "caption", split: str = "") -> list[str]:
    """Reads the training captions of a TFDS directory, a CSV file or a text file (one caption a line).

    Args:
      path: a directory that holds dataset_info.json, a .csv file, or any other file, which is read as UTF-8 text.
      caption_column: CSV: the column that holds the captions.
      split: TFDS: the split's name, "train" where empty. CSV: `all` or `column=value|value`; where empty,
        `split=train` if there is a column `split`, else all rows. Not allowed with text.

    Raises:
      UserError: the input, the column or the split is missing, or has no caption.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"--input {path} does not exist: expected a TFDS directory, a .csv file or a text file")
    try:
        if path.is_dir():
            captions = _read_tfds(path, split or "train")
        elif path.suffix.lower() == ".csv":
            captions = list(_read_csv(path, caption_column, split))
        elif split:
            raise UserError(f"--split {split!r}: {path} is read as text, which has no splits; leave it out")
        else:
            captions = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--input {path}: expected UTF-8 text, but {error}") from error
    if not any(map(str.strip, captions)):
        raise UserError(f"--input {path} has no caption: expected at least one that is not empty")
    return captions


def _read_tfds(path, split):
    if not (path / "dataset_info.json").is_file():
        raise UserError(f"--input {path} has no dataset_info.json: expected a TFDS directory, a .csv or a text file")
    import tensorflow_datasets as tfds  # only this input needs it

    builder = tfds.builder_from_directory(path)
    if split not in builder.info.splits:
        raise UserError(f"--split {split!r}: {path} has {', '.join(builder.info.splits)}")
    if "caption" not in builder.info.features:
        raise UserError(f"--input {path}: expected a feature `caption`, found {', '.join(builder.info.features)}")
    source = builder.as_data_source(split=split)
    return [source[i]["caption"].decode("utf-8") for i in range(len(source))]


def _read_csv(path, column, split) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        columns = list(table.fieldnames or ())
        if not split:
            split = "split=train" if "split" in columns else "all"
        key, equals, values = split.partition("=")
        if split != "all" and not equals:
            raise UserError(f"--split {split!r}: expected all or column=value|value for {path}")
        for flag, name in [("--caption-column", column)] + ([("--split", key)] if equals else []):
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{flag}: {path} has no column {name!r}, only {', '.join(columns) or 'none'}{hint}")
        found = set()
        wanted = set(values.split("|"))
        for row in table:
            found.add(row[key] if equals else "")
            if not equals or row[key] in wanted:
                yield row[column] or ""
        if equals and not wanted & found:
            raise UserError(f"--split {split!r} matches no row of {path}: {key!r} has {', '.join(sorted(found)[:20])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, trains, writes the model and prints one line; returns 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m data.train_tokenizer", description="Trains the tokenizer.")
    parser.add_argument("--input", required=True, help="TFDS directory, .csv file, or text file with a caption a line")
    parser.add_argument("--output", required=True, help="the .model file to write")
    parser.add_argument("--caption-column", default="caption", help="CSV: the captions' column (%(default)s)")
    parser.add_argument(
        "--split",
        default="",
        help="TFDS: a split (train); CSV: all or column=value|value (split=train where there is such a column)",
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
        captions = read_captions(given.input, given.caption_column, given.split)
        model = train(captions, given.vocab_size)
        output = pathlib.Path(given.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        # Whole or absent, whenever the process dies: `make` takes a file that exists for a finished one.
        part = output.with_name(output.name + ".part")
        part.write_bytes(model)
        part.replace(output)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    print(f"wrote {output}: {size} pieces from {len(captions)} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
