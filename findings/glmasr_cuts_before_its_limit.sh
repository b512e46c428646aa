#!/usr/bin/env bash
# transformers 5.23.0
# GLM-ASR's processor, whose max_audio_len is 655 seconds ("Audio longer than this will be truncated"), gets sounds around that length.
#
# Guess: 640 seconds are read whole, and 700 are cut to 655.
# Seen:  both are cut to 630: the limit is counted in whole windows of 30 seconds. The warning says of 640 that it "exceeds 655s", and
#        of both "truncating to first 655s".
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 numpy
cat > run.py << 'END'
import logging

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GlmAsrProcessor, PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.utils import logging as theirs

theirs.set_verbosity_warning()
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)

words = Tokenizer(models.WordLevel({"<unk>": 0, "<|pad|>": 1, "text": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>", extra_special_tokens=["<|pad|>"])
processor = GlmAsrProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
print("max_audio_len", processor.max_audio_len)

found = {}
for seconds in (620, 630, 640, 700):
    warnings.clear()
    made = processor(text=["text <|pad|> text"], audio=[np.zeros(16000 * seconds, np.float32)])
    read = int(made["input_features_mask"].sum()) / 100
    said = [text for text in warnings if "exceeds" in text]
    found[seconds] = read, int((made["input_ids"] == 1).sum()), said
    print(f"{seconds} s: {read:.0f} s are read, as {found[seconds][1]} tokens", *said)
as_found = (
    processor.max_audio_len == 655
    and [found[seconds][0] for seconds in found] == [620, 630, 630, 630]
    and not found[630][2]
    and "(640.0s) exceeds 655s; truncating to first 655s" in "".join(found[640][2])
    and "truncating to first 655s" in "".join(found[700][2])
)
print("as found" if as_found else "CHANGED")
raise SystemExit(not as_found)
END
quiet new/bin/python run.py
