"""A program: isobit where Triton is not installed, as after `pip install .` alone."""

import sys


class Missing:
    """Finds no Triton."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())  # type: ignore[arg-type]

from isobit.cli.main import main  # noqa: E402

assert main(["generate", "bundled", "def f(", "--max-tokens", "2"]) == 0
assert main(["plan", "bundled", "--scheme", "fp8"]) == 0
assert "triton" not in sys.modules
