"""Files of pictures, videos and sounds to values, within limits. No path is opened here and no address is asked."""

from isobit.media.clips import clip
from isobit.media.limits import LIMITS, Limits
from isobit.media.pictures import picture
from isobit.media.sounds import sound
from isobit.media.values import Clip, Kind, Medium, Picture, Sound

__all__ = ["LIMITS", "Clip", "Kind", "Limits", "Medium", "Picture", "Sound", "clip", "picture", "sound"]
