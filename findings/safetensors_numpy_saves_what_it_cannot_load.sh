#!/usr/bin/env bash
# safetensors 0.8.0 with NumPy 2.4.6, ml_dtypes 0.6.0
# Arrays of bfloat16 and float8_e4m3fn go through safetensors.numpy's save and load, and save_file and load_file.
#
# Guess: what it saves it loads; of the bytes of one file load and load_file make the same arrays.
# Seen:  save and save_file write both dtypes, rightly named (BF16, F8_E4M3). load_file returns bfloat16, load of the same bytes is a
#        KeyError: 'BF16'. Of float8_e4m3fn load is a KeyError, too, and load_file an AttributeError: it looks for numpy.float8_e4m3fn.
. "$(dirname "$0")"/environment.sh
environment new numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0
cat > run.py << 'END'
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load, load_file, save, save_file


def outcome(read, array: np.ndarray) -> str:
    try:
        found = read()["one"]
    except (KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return "as saved" if found.dtype == array.dtype and found.tobytes() == array.tobytes() else "changed"


found = {}
for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("float8_e4m3fn", ml_dtypes.float8_e4m3fn)):
    array = np.arange(4).astype(dtype)
    save_file({"one": array}, name)
    assert Path(name).read_bytes() == save({"one": array})
    found[name] = outcome(lambda: load(Path(name).read_bytes()), array), outcome(lambda: load_file(name), array)
    print(f"{name}: load: {found[name][0]}; load_file: {found[name][1]}")
same = found == {
    "float16": ("as saved", "as saved"),
    "bfloat16": ("KeyError: 'BF16'", "as saved"),
    "float8_e4m3fn": ("KeyError: 'F8_E4M3'", "AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'"),
}
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
