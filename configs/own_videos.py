"""SMAUG on a folder of one's own videos and a table (CSV, TSV or JSON lines); small enough for a CPU.

Launch::

    python -m data.train_tokenizer --input clips.csv --caption-column caption --output tokenizer.model
    python -m vlp_jax.train --config configs/own_videos.py --config.input.path=clips.csv \\
        --config.input.tokenizer=tokenizer.model --workdir runs/own

The table ends in .csv, .tsv or .jsonl, and `config.input.path` may be a glob of several. It has a column of paths
(`config.input.video_column`), relative to the table's own folder or to `config.input.video_root`, a column of captions
(`config.input.caption_column`) and, where a row means a part of its video, columns of seconds
(`config.input.start_column`, `config.input.end_column`). CSV and TSV have a header. `config.input.split` and
`config.evaluation.split` choose rows: `all`, or `column=value|value`.

The argument `gmdcsa24` presets the columns of GMDCSA-24 (23 captioned clips of daily activities and falls, MIT
licence): subjects 1 to 3 to train on, subject 4 to retrieve. With so few clips this shows that the door works, not
what is learned.
"""

from configs import smaug
from vlp_jax.config import update
from vlp_jax.types import UserError

OWN = {
    "name": "smaug-own",
    "steps": 200,
    "epochs": 0.0,
    "batch_size": 8,
    "input.kind": "table",
    "input.path": "clips.csv",
    "input.split": "all",
    "input.tokenizer": "",
    "input.video_column": "video",
    "input.caption_column": "caption",
    "input.positives": "caption",
    "input.image_size": 64,
    "input.max_text_tokens": 32,
    # Everyday footage bears mirroring and mild crops; switch them off where captions say left or right.
    "input.flip": True,
    "input.crop_scale": (0.7, 1.0),
    "evaluation.split": "all",
    "evaluation.batch_size": 8,
    "checkpoint.every_steps": 100,
    "log_every": 10,
}

GMDCSA24 = {
    "name": "smaug-gmdcsa24",
    "input.path": "captions.csv",
    "input.video_root": "clips",
    "input.video_column": "clip",
    "input.split": "subject=1|2|3",
    "evaluation.split": "subject=4",
}


def get_config(arg: str = ""):
    """Returns the config; `gmdcsa24` presets that dataset's columns."""
    if arg not in ("", "gmdcsa24"):
        raise UserError(f"configs/own_videos.py:{arg}: expected no argument, or gmdcsa24")
    config = update(smaug.get_config("tiny"), OWN)
    return update(config, GMDCSA24) if arg else config
