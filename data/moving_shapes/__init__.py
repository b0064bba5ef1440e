"""moving_shapes, the embedded dataset: short clips of shapes that act in turn, with captions that say what and when.

Files, in the order the data travels: scenes.py (what happens, in words and in pixels) -> render.py (frames, mp4) ->
questions.py (question answering, multiple choice and classes about every split) -> builder.py (TFDS or folder on disk).
"""
