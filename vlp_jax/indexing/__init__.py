"""Search over a folder of videos: its files, their windows, an index of embeddings that grows, and what is shown."""
