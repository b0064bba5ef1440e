"""What the tests of parity share: how far apart two arrays are, and the gradients of a model of torch."""

import numpy as np

from vlp_jax.pretrained.weights import open_weights


def error(got, expected, least=0.0):
    """Largest difference over the largest value, or over `least` where that is larger."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.abs(got - expected).max() / max(np.abs(expected).max(), least)


def root_mean_square(got, expected):
    """Root mean square of the difference over that of the values."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.sqrt(np.square(got - expected).mean() / np.square(expected).mean()))


def saved_gradients(model, folder):
    """The model's gradients by the names that it saves parameters under, which are not those that it holds."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folder)
    tensors, _ = open_weights(str(folder))
    return {name: tensors.read(name) for name in tensors.names()}


def shake(model):
    """Changes parameters that begin as ones, zeros or alike, which would hide a swap."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            special = ("relative", "cls", "class_embedding", "position", "time_embeddings", "temporal_dense", "token")
            if parameter.requires_grad and (parameter.ndim == 1 or any(word in name for word in special)):
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()
