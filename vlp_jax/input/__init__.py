"""Input: records on disk to fixed-shape host batches, in an order that is a pure function of (seed, step)."""
