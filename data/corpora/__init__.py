"""Corpora in their official layouts, written as TFDS datasets in ArrayRecord by `python -m data.prepare`.

corpus.py says what a corpus module offers; each of the modules with a NAME reads one corpus; reencode.py makes clips
small; writer.py writes.
"""
