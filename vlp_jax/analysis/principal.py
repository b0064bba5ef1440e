"""Principal components of embeddings."""

import numpy as np


def principal_components(x_NxE: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `[N, count]` along the principal components of rows, and the share of the variance of each `[count]`.

    The sign is such that the largest weight of a component is positive.
    """
    x = np.asarray(x_NxE, np.float64)
    x = x - x.mean(0)
    _, scale, axes = np.linalg.svd(x, full_matrices=False)
    axes = axes[:count]
    axes = axes * np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(1)] < 0, -1.0, 1.0)[:, None]
    total = (scale**2).sum()
    return x @ axes.T, scale[:count] ** 2 / total if total else np.zeros(len(axes))
