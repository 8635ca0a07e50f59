"""The former place of `eval.mechanism.callback`, which programs written for earlier versions import."""

from eval.mechanism.callback import PictureCallback

__all__ = ["PictureCallback"]
