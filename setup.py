"""Packaging of modeling-toto: four import packages, one module, one command."""

from pathlib import Path

from setuptools import setup

# Dependencies of the embedded world, the demo and the report.
demo = ["matplotlib", "scikit-image", "scikit-video"]
app = ["gradio>=6,<7"]
robots = ["metaworld>=3.1", "gymnasium>=1.1"]
# Object storage; versions of both follow fsspec's.
remote = ["s3fs>=2025.3", "gcsfs>=2025.3"]
# The S3 server of the tests. moto[server] would add a dozen packages for other services.
s3_server = ["s3fs>=2025.3", "moto[s3]>=5.1", "flask>=3", "flask-cors>=5"]

setup(
    name="modeling-toto",
    version="0.1.0",
    description="Toto: autoregressive pre-training from videos (arXiv 2501.05453), as a Hugging Face model family",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # Listed explicitly, because find_packages would install the tests.
    packages=[
        "modeling_toto",
        "tokenization",
        "tokenization.evaluate_tokenizer",
        "tokenization.originals",
        "tokenization.shards",
        "tokenization.sources",
        "tokenization.storage",
        "tokenization.terminal",
        "tokenization.toyworld",
        "training",
        "training.engine",
        "training.prompting",
        "training.publish",
        "training.rows",
        "training.sweep",
        "training.tokenizers",
        "evaluation",
        "evaluation.app",
        "evaluation.backbones",
        "evaluation.continuations",
        "evaluation.heads",
        "evaluation.ngrams",
        "evaluation.permanence",
        "evaluation.probe",
        "evaluation.prompt",
        "evaluation.report",
        "evaluation.robot",
        "evaluation.robot.episodes",
        "evaluation.track",
        "evaluation.visualize",
    ],
    py_modules=["toto_cli"],
    package_data={
        "modeling_toto": ["py.typed"],
        "tokenization": ["py.typed", "weights/*/*"],
        "tokenization.originals": ["*.jinja"],
        "tokenization.shards": ["*.jinja"],
        "training": ["py.typed", "recipes/*.yaml", "recipes/*/*.yaml", "launch/*"],
        "training.publish": ["templates/*"],
        "evaluation": ["py.typed"],
        "evaluation.report": ["templates/*"],
    },
    install_requires=[
        "accelerate>=1.10",
        "av>=15",
        "datasets>=5.0.1",
        "evaluate>=0.4.3",
        "filelock>=3.15",
        "fsspec>=2025.3",
        "huggingface-hub>=1.0",
        "jinja2>=3.1",
        "numpy>=1.26",
        "pillow>=10",
        "pyyaml",
        "safetensors>=0.5",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "torch>=2.8",
        "tqdm",
        "transformers>=5.20",
    ],
    extras_require={
        "app": app,
        "demo": demo,
        "liger": ["liger-kernel"],
        "remote": remote,
        "robots": robots,
        "torchcodec": ["torchcodec>=0.10"],
        "test": [
            *(*app, *demo, *robots, *s3_server, "datatrove", "peft", "pytest", "pytest-xdist", "ruff", "swanlab"),
            *("tensorboard", "torchcodec>=0.10"),
        ],
    },
    entry_points={"console_scripts": ["toto = toto_cli:main"]},
)
