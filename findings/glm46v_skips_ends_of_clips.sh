#!/usr/bin/env bash
# transformers 5.23.0
# GLM-4.6V's video processor chooses frames of clips of 30 frames a second: six of a second, for clips of up to 30 seconds.
#
# Guess: they are spread over the whole clip.
# Seen:  time is cut to whole seconds first. Of 2 seconds frames go to the end. Of 1.9 seconds (57 frames) none after frame 30 is looked at,
#        and the places that were to come from there are taken in what is before, closer together; of 0.9 seconds the first frame is all,
#        twice; of 0.1 seconds none at all. What stands in the last part of a second of a clip is not seen.
. "$(dirname "$0")"/environment.sh
environment new transformers==5.23.0 numpy
cat > run.py << 'END'
import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from transformers.video_utils import VideoMetadata

# The processor's module imports torchvision, and not every PyTorch has one. Choosing frames is NumPy: that function, as it stands in the
# file, with the processor's own temporal_patch_size.
file = Path(importlib.util.find_spec("transformers").origin).parent / "models/glm46v/video_processing_glm46v.py"
tree = ast.parse(file.read_text())
(own,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Glm46VVideoProcessor")
(function,) = (node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "sample_frames")
names = {"np": np, "VideoMetadata": VideoMetadata}
exec(compile(ast.Module([function], []), str(file), "exec"), names)
settings = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in own.body
    if isinstance(node, ast.Assign) and node.targets[0].id in ("temporal_patch_size", "fps")
}
assert settings == {"temporal_patch_size": 2, "fps": 2}, settings

found = {}
for frames in (3, 27, 57, 60, 119, 120, 299, 300):
    clip = VideoMetadata(total_num_frames=frames, fps=30, duration=frames / 30)
    chosen = found[frames] = [int(frame) for frame in names["sample_frames"](SimpleNamespace(**settings), clip)]
    shown = str(chosen) if len(chosen) < 14 else f"{str(chosen[:3])[:-1]} ... {str(chosen[-3:])[1:]}"
    print(f"{frames / 30:.2f} seconds, frames 0 to {frames - 1}: {len(chosen)} chosen: {shown}")
as_found = (
    all(frames - 1 - max(found[frames]) <= 5 for frames in (60, 120, 300))
    and all(frames - 1 - max(found[frames]) >= 26 for frames in (57, 119, 299))
    and found[27] == [0, 0]
    and found[3] == []
)
print("as found" if as_found else "CHANGED")
raise SystemExit(not as_found)
END
quiet new/bin/python run.py
