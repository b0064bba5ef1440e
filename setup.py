"""Installs vlp_jax; extras pick the accelerator build of JAX and the developer tools."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="vlp_jax",
    version="0.1.0",
    description="Efficient video-language pre-training in JAX: SMAUG and its neighbours as short recipes",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vlp_jax", "vlp_jax.*"]),
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        "array_record>=0.8.6",
        "pyarrow>=20",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "flatbuffers>=24",
        "ml-collections>=1.1",
        "clu>=0.0.12",
        "av>=17",
        "tensorboardX>=2.6.5",
        "matplotlib>=3.9",
        "fsspec>=2025.3",
    ],
    extras_require={
        "gpu": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "gcs": ["gcsfs"],
        "beam": ["apache-beam>=2.77"],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "pyyaml",
            "transformers",
            "ruff>=0.17,<0.18",
            "mypy>=2.4,<3",
            "nbclient",
            "ipykernel",
        ],
        "notebook": ["jupyterlab"],
        "parity": ["torch==2.13.0", "transformers>=5"],
        "versus": ["torch", "transformers"],
    },
)
