#!/usr/bin/env bash
# safetensors 0.8.0
# The same two arrays with the same metadata are saved by eight processes, once with one key of metadata and once with six.
#
# Guess: eight equal files each time: the header sorts tensors by itself, and Python keeps the order of the keys that it is given.
# Seen:  with one key they are equal. With six their keys stand in another order in each process, and hardly two files have one hash; PYTHONHASHSEED
#        changes nothing. Whoever compares checkpoints by their hashes, or caches by them, sees new weights where there are none.
. "$(dirname "$0")"/environment.sh
environment new numpy==2.4.6 safetensors==0.8.0
cat > one.py << 'END'
import hashlib
import json
import sys

import numpy as np
from safetensors.numpy import save

metadata = {name: "1" for name in ["format", "a", "b", "c", "d", "e"][: int(sys.argv[1])]}
data = save({"second": np.ones(3, np.float32), "first": np.zeros(2, np.float16)}, metadata)
header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
assert header["__metadata__"] == metadata
print(hashlib.sha256(data).hexdigest()[:8], *header["__metadata__"])
END
cat > run.py << 'END'
import os
import subprocess
import sys

found = {}
for keys in (1, 6):
    command, fixed = [sys.executable, "one.py", str(keys)], os.environ | {"PYTHONHASHSEED": "0"}
    lines = [subprocess.run(command, env=fixed, check=True, capture_output=True, text=True).stdout.strip() for _ in range(8)]
    found[keys] = len({line.split()[0] for line in lines})
    print(f"{keys} keys: {found[keys]} different files of 8;", *lines[:3], sep="\n    ")
same = found[1] == 1 and found[6] > 1
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
