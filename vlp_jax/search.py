"""Finds clips of a folder by a text: `python -m vlp_jax.search --workdir DIR --videos FOLDER [--query TEXT]`.

The folder is indexed once: every video below it, long ones in windows, is embedded by the run's model, and a later call
embeds only what is new or changed. The index lies in FOLDER/.vlp_jax_index, or in --index. Without --query or --like it
asks for queries until an empty line. Results go to stdout, all else to stderr.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from absl import flags

from vlp_jax import analysis, launch
from vlp_jax.files import write_atomically
from vlp_jax.indexing import folder as folder_lib
from vlp_jax.indexing import sheet, update
from vlp_jax.indexing.gallery import Gallery, Hit
from vlp_jax.indexing.searcher import EMPTY, Query, Searcher, like_file
from vlp_jax.indexing.store import Locked, Store, damaged, lock
from vlp_jax.telemetry.counting import CountProgress
from vlp_jax.text import duration, visible
from vlp_jax.types import UserError

FLAGS = flags.FLAGS

INDEX = ".vlp_jax_index"
_WINDOW = 10.0  # seconds, of a new index
_LISTED = 20  # bad files
_SHORTEST = 0.1  # seconds of a window, or from one to the next
_SETTINGS: dict[str, Any] = {  # of an index
    **dict.fromkeys(("model", "weights", "videos"), str),
    **dict.fromkeys(("frames", "image_size"), int),
    **dict.fromkeys(("window", "stride"), (int, float)),
}
_HELP = """a text          finds the clips that show it
:like PATH[@TIME]   finds clips like this file, or like the window around a time of it (75 or 1:15)
:top N              shows N of them
:html FILE          writes the last results as a contact sheet
an empty line, or Ctrl-D, ends"""


# --- The index --------------------------------------------------------------------------------------------------------


def chosen_windows(stored: dict[str, Any]) -> tuple[float, float]:
    """Seconds of window and stride by the flags; those of an index that is there, by default."""
    window = FLAGS.window if FLAGS.window is not None else stored.get("window", _WINDOW)
    stride = FLAGS.stride if FLAGS.stride is not None else stored.get("stride", window)
    if window and not _SHORTEST <= window < math.inf:
        raise UserError(f"--window={window:g}: expected seconds, {_SHORTEST:g} or more; 0 takes whole videos")
    if window and not _SHORTEST <= stride <= window:
        raise UserError(
            f"--stride={stride:g} with --window={window:g}: expected seconds, {_SHORTEST:g} or more, and no more than "
            "a window's: what lies between two windows would not be found"
        )
    return window, stride


def opened(folder: pathlib.Path) -> tuple[Store, Gallery] | None:
    """The index of a folder, and its windows; None where there is none."""
    there = Store.read(folder)
    if there is None:
        return None
    store, entries, matrix = there
    for name, kind in _SETTINGS.items():
        if not isinstance(store.settings.get(name), kind):
            raise UserError(damaged(folder, f"its setting {name} is {store.settings.get(name)!r}"))
    return store, Gallery(entries, matrix)


def check(store: Store, settings: dict[str, Any], videos: str, width: int) -> None:
    """Refuses an index of another model, or of other windows: their embeddings do not compare."""
    ways = f"--reindex makes it anew, --index=DIR makes another one; {store.folder} stays as it is until then"
    theirs = store.settings
    if theirs["videos"] != settings["videos"]:
        raise UserError(
            f"the index {store.folder} is of another folder, {store.folder / theirs['videos']}, not of {videos}: {ways}"
        )
    names = ("weights", "frames", "image_size")
    if any(theirs[name] != settings[name] for name in names):
        said = [", ".join(f"{name} {x[name]}" for name in names) for x in (theirs, settings)]
        raise UserError(
            f"the index {store.folder} is by {theirs['model']} ({said[0]}), --workdir={FLAGS.workdir} holds "
            f"{settings['model']} ({said[1]}), and embeddings of two models do not compare: {ways}"
        )
    if store.width != width:
        raise UserError(damaged(store.folder, f"it has embeddings of {store.width} numbers, and its model of {width}"))
    for name in ("window", "stride"):
        if theirs[name] != settings[name]:
            raise UserError(
                f"--{name}={settings[name]:g}, but the index {store.folder} has a {name} of {theirs[name]:g} seconds: "
                f"{ways}"
            )


def bring_up_to_date(
    searcher: Searcher, before: tuple[Store, Gallery] | None, folder: pathlib.Path
) -> tuple[Store, Gallery, dict[str, int]]:
    """Embeds what is new, into the index or a new one.

    Returns:
      The index, its windows, and how many files were done what with.
    """
    videos, own, width = searcher.videos, searcher.settings(folder), searcher.loaded.config.model.projection
    if before:
        check(before[0], own, videos, width)
    if not FLAGS.update:
        if before is None:
            raise UserError(f"--noupdate: {folder} holds no index yet; leave the flag out to make it")
        return *before, {}
    found = folder_lib.find(videos)
    for name, why in found.unreadable.items():
        say(f"warning: {visible(os.path.normpath(os.path.join(videos, name)))} cannot be listed: {why}")
    if not found.files:
        raise UserError(
            f"--videos={videos}: no video below it; names are expected to end in {' '.join(folder_lib.VIDEOS)}"
        )
    todo = update.plan(before[0].entries if before else {}, found)
    if before is None or todo or todo.again:
        try:
            with lock(folder):
                # Another process may have written since.
                there = None if FLAGS.reindex else opened(folder)
                store = there[0] if there else Store.create(folder, own, width)
                check(store, own, videos, width)
                todo = update.plan(store.entries, found)
                embed_new(searcher, store, found, todo)
                before = store, Gallery(*store.matrix())
        except (Locked, OSError) as error:
            if before is None or todo:
                raise
            say(f"warning: {len(todo.again):,} files that could not be read are not tried again now: {error}")
            todo = dataclasses.replace(todo, again=[])
    counts = {name: len(getattr(todo, name)) for name in ("new", "changed", "moved", "removed", "again")}
    unchanged = len(found.files) - counts["new"] - counts["changed"] - counts["moved"]
    return *before, {**counts, "unchanged": unchanged}


def embed_new(searcher: Searcher, store: Store, found: folder_lib.Found, todo: update.Plan) -> None:
    """Updates the index, with progress; Ctrl-C ends the process, and says that nothing is lost."""
    mesh = searcher.loaded.run.setup.mesh
    ways = mesh.size // mesh.shape["tensor"]
    count = len(todo.new) + len(todo.changed) + len(todo.again)
    # A few new files are no reason to compute a whole batch.
    few = max(8, 1 << (count - 1).bit_length()) if count else 8
    batch_size = FLAGS.batch_size or min(searcher.loaded.config.evaluation.batch_size, few)
    batch_size = -(-batch_size // ways) * ways
    progress = CountProgress("indexing", count)
    threads = len(os.sched_getaffinity(0))
    try:
        update.update(
            *(store, searcher.videos, found, todo, searcher.reading, searcher.embed),
            batch_size=batch_size,
            threads=threads,
            progress=progress,
        )
    except KeyboardInterrupt:
        say("\ninterrupted: what is indexed is kept, and the same command goes on from there")
        sys.exit(130)
    if count:
        progress.close()


def say(text: str) -> None:
    """Prints to stderr."""
    print(text, file=sys.stderr, flush=True)


def bad_of(store: Store) -> list[dict[str, Any]]:
    """Files, and windows of files, that do not decode, with the reason."""
    entries = sorted(store.entries.values(), key=lambda entry: entry.path)
    return [{"path": entry.path, **dataclasses.asdict(bad)} for entry in entries for bad in entry.bad]


def summary(store: Store, counts: dict[str, int], gallery: Gallery) -> str:
    """What the index holds, and what was done."""
    names = {"new": "new", "changed": "changed", "moved": "renamed", "removed": "removed", "again": "tried again"}
    done = [f"{counts[name]:,} {said}" for name, said in names.items() if counts.get(name)]
    status = ", ".join(done) if done else "nothing new" if counts else "not updated"
    lines = [f"{store.folder}: {gallery.files:,} videos, {len(gallery):,} windows ({status})"]
    bad = bad_of(store)
    if bad:
        files = len({one["path"] for one in bad})
        lines.append(
            f"{files:,} files do not decode, or not all of their windows; they are tried again once changed, and at "
            "every update where they could not be read or took too long:"
        )
        for one in bad[:_LISTED]:
            place = "" if one["start"] is None else f" {duration(one['start'])}-{duration(one['end'])}"
            lines.append(f"  {visible(one['path'])}{place}: {visible(one['error'])}")
        if len(bad) > _LISTED:
            lines.append(f"  and {len(bad) - _LISTED:,} others; --json lists all")
    return "\n".join(lines)


# --- What is shown ----------------------------------------------------------------------------------------------------


def table(query: Query, hits: list[Hit], videos: str) -> str:
    """The results as text."""
    lines = [f"{'':4} {'score':>7}  {'time':<16} {query.title}"]
    for rank, hit in enumerate(hits, 1):
        time_of = "-".join(map(duration, hit.span))
        lines.append(f"{rank:>4} {hit.score:7.3f}  {time_of:<16} {visible(os.path.join(videos, hit.path))}")
    return "\n".join(lines)


def rows(hits: list[Hit], videos: str) -> list[dict[str, Any]]:
    """The results for JSON."""
    return [
        {
            "rank": rank,
            "score": hit.score,
            "path": os.path.join(videos, hit.path),
            "start": hit.span[0],
            "end": hit.span[1],
        }
        for rank, hit in enumerate(hits, 1)
    ]


def write_sheet(searcher: Searcher, query: Query, hits: list[Hit], file: str) -> None:
    """Writes the contact sheet of a query's results."""
    shown = [sheet.look_up(hit, searcher.videos, searcher.reading.timeout_s) for hit in hits]
    note = f"best {len(hits):,} of {searcher.gallery.files:,} videos in {searcher.videos}, by {searcher.loaded.title}"
    write_atomically(file, sheet.render(query.title, note, shown).encode())
    say(f"contact sheet: {file}")


def ask(searcher: Searcher, top: int, every_window: bool) -> None:
    """The prompt."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (history and editing of the line)

    asks = sys.stdin.isatty()
    if asks:
        say(f"a text, :like PATH, :help; an empty line ends ({searcher.gallery.files:,} videos)")
    last: tuple[Query, list[Hit]] | None = None
    while True:
        try:
            line = input("search> " if asks else "").strip()
        except EOFError:
            line = ""
        if not line:
            return
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        try:
            if word == ":help":
                print(_HELP)
            elif word == ":top":
                if not rest.isdecimal() or not int(rest):
                    raise UserError(f":top {rest}: expected a number from 1")
                top = int(rest)
            elif word == ":html":
                if last is None or not rest:
                    raise UserError(f":html {rest}: expected a file's name, after a query")
                sheet.check_file(":html ", rest)
                write_sheet(searcher, *last, rest)
            elif word.startswith(":") and word != ":like":
                raise UserError(f"{word}: expected a text, :like, :top, :html or :help")
            else:
                start = time.perf_counter()
                query = searcher.like(rest) if word == ":like" else searcher.text(line)
                last = query, searcher.answer(query, top, every_window)
                show(searcher, *last)
                say(f"{time.perf_counter() - start:.3f} s")
        except (UserError, OSError) as error:
            say(f"error: {error}")


def show(searcher: Searcher, query: Query, hits: list[Hit]) -> None:
    """Prints the results, and what is to be said of the query."""
    for note in query.asked["notes"]:
        say(f"note: {visible(note)}")
    print(table(query, hits, searcher.videos), flush=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    check_flags()
    videos = FLAGS.videos
    folder = pathlib.Path(FLAGS.index or os.path.join(videos, INDEX))
    step, best = launch.chosen_checkpoint(FLAGS.checkpoint)
    before = None if FLAGS.reindex else opened(folder)
    window, stride = chosen_windows(before[0].settings if before else {})
    searcher = Searcher(analysis.load(FLAGS.workdir, step, best=best), videos, window, stride)
    store, searcher.gallery, counts = bring_up_to_date(searcher, before, folder)
    say(summary(store, counts, searcher.gallery))
    query = None
    if FLAGS.query is not None or FLAGS.like is not None:
        if not len(searcher.gallery):
            raise UserError(f"--videos={videos}: none of its {len(store.entries)} videos decodes")
        query = searcher.text(FLAGS.query) if FLAGS.like is None else searcher.like(FLAGS.like)
        hits = searcher.answer(query, FLAGS.top, FLAGS.windows == "all")
        if FLAGS.html is not None:
            write_sheet(searcher, query, hits, FLAGS.html)
        if not FLAGS.json:
            show(searcher, query, hits)
    if FLAGS.json:
        state = {"folder": str(folder), **store.settings, "files": searcher.gallery.files}
        out: dict[str, Any] = {"index": {**state, "windows": len(searcher.gallery), **counts, "bad": bad_of(store)}}
        if query is not None:
            out |= {"query": query.asked, "results": rows(hits, videos)}
        print(json.dumps(out))  # ASCII: names of files need not be UTF-8
    elif query is None and not FLAGS.index_only:
        ask(searcher, FLAGS.top, FLAGS.windows == "all")


def check_flags() -> None:
    """Refuses flags that contradict each other, or name what is not there, before anything is loaded or indexed."""
    ways = {"query": FLAGS.query is not None, "like": FLAGS.like is not None, "index_only": FLAGS.index_only}
    given = [name for name, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in given)}: expected one of them")
    if FLAGS.json and not given:
        raise UserError("--json: expected --query, --like or --index_only with it")
    if FLAGS.html is not None and given not in (["query"], ["like"]):
        raise UserError(f"--html={FLAGS.html}: expected --query or --like with it; the prompt has :html")
    if FLAGS.reindex and not FLAGS.update:
        raise UserError("--reindex --noupdate: expected one of them")
    if FLAGS.top < 1:
        raise UserError(f"--top={FLAGS.top}: expected 1 or more")
    if FLAGS.batch_size is not None and FLAGS.batch_size < 1:
        raise UserError(f"--batch_size={FLAGS.batch_size}: expected 1 or more")
    if not os.path.isdir(FLAGS.videos):
        raise UserError(f"--videos={FLAGS.videos}: no such folder")
    if FLAGS.query is not None and not FLAGS.query.strip():
        raise UserError(f"--query={FLAGS.query!r}: {EMPTY}")
    if FLAGS.like is not None:
        like_file(FLAGS.like, FLAGS.videos)
    if FLAGS.html is not None:
        sheet.check_file("--html=", FLAGS.html)


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    launch.use_huge_pages()
    flags.DEFINE_string(
        "workdir", None, "Directory of a training run, or its address such as gs://BUCKET/NAME.", required=True
    )
    flags.DEFINE_string("videos", None, "Folder that is searched, with its subfolders.", required=True)
    flags.DEFINE_string("query", None, "A text; without it and --like a prompt asks for queries.")
    flags.DEFINE_string("like", None, "PATH or PATH@TIME of a video, in the folder or not: finds clips like it.")
    flags.DEFINE_integer("top", 10, "Results shown.")
    flags.DEFINE_enum("windows", "best", ["best", "all"], "Of each video its best window, or all windows.")
    flags.DEFINE_string("html", None, "File that a contact sheet of the results is written to.")
    flags.DEFINE_bool("json", False, "Prints one JSON object to stdout, and nothing else there.")
    flags.DEFINE_bool("index_only", False, "Updates the index, and ends.")
    flags.DEFINE_alias("index-only", "index_only")
    flags.DEFINE_string("index", None, f"Folder of the index; {INDEX} in the folder of videos by default.")
    flags.DEFINE_bool("update", True, "Looks for new and changed files; --noupdate searches the index as it is.")
    flags.DEFINE_bool("reindex", False, "Makes the index anew, by another model or with other windows.")
    flags.DEFINE_float("window", None, f"Seconds of a window, 0 for whole videos; {_WINDOW:g} in a new index.")
    flags.DEFINE_float("stride", None, "Seconds between the starts of windows; --window in a new index.")
    flags.DEFINE_string("checkpoint", None, "Step, or best; the newest intact one by default.")
    flags.DEFINE_integer(
        "batch_size", None, "Windows embedded at once; config.evaluation.batch_size at most by default."
    )
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files need not be UTF-8
    launch.run_app(main)


if __name__ == "__main__":
    cli()
