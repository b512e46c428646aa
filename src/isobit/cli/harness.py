"""`isobit-lm-eval`: the command of lm-evaluation-harness, which knows isobit's models under the name ``isobit``.

    isobit-lm-eval run --model isobit --model_args pretrained=bundled-int4 --tasks hellaswag --output_path results

The harness looks for no plugins: a model class is known to its command only if somebody registers it before. All that
its command can do (logging of samples, its caches, its exports) works as for its own classes; `isobit eval --tasks`
compares models, which it does not.
"""

from __future__ import annotations

import sys

from isobit.errors import IsobitError


def main() -> int:
    """Registers the class and runs the harness's command with the arguments of this process."""
    try:
        from isobit.evaluation.tasks.run import require_harness

        require_harness()
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry

        model_registry.register("isobit", target="isobit.evaluation.tasks.registered:RegisteredLM")
        cli_evaluate()
    except IsobitError as error:
        print(f"isobit-lm-eval: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
