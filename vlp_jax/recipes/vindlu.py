"""VindLU: a recipe for effective video-and-language pre-training (Cheng et al., CVPR 2023, arXiv 2212.05051).

From the paper and its released code: BEiT-B/16 with temporal attention at the end of every block, x + s MHSA(LN x), s a
scalar from zero, skipped by images, and a table of temporal positions from zero; BERT's first 9 layers over the text,
its last 3 with cross-attention to all frames; VTC as the mean over the frames of cosines, VTM with hard negatives and
MLM of half of the words; images and videos in batches of one kind that alternate, videos with 4 frames; 12 frames in
fine-tuning.

Different here: by default the text tower is pre-norm and the encoder has no layer scale (`model.text.norm=post` and
`model.vision.layer_scale` are BERT's and BEiT's); no dropout and no stochastic depth; hard negatives come from the
global batch unless `loss.vtm_group` is set (the code's are each GPU's own); a pair is scored by the difference of
VTM's two logits, not by the second; the table of positions is interpolated for fewer frames, not cut.
"""

from typing import Any, ClassVar

import jax

from vlp_jax.recipes.align_and_fuse import AlignAndFuse
from vlp_jax.types import Batch, Outputs


class Vindlu(AlignAndFuse):
    """The recipe; its schedule of images and videos is the config's `mixture`."""

    FIXED: ClassVar[dict[str, Any]] = {
        "model.vision.attention": "frame",
        "model.vision.temporal_attention": "zero_init",
        "model.temporal.layers": 0,
        "model.masking.kind": "none",
        "model.pruning.layers": (),
        "model.selection.frames": 0,
        "loss.mvm": 0.0,
        "evaluation.ensemble": "concat",
    }

    def loss(self, batch: Batch, key: jax.Array, masked: bool = True, teacher: Any = None) -> Outputs:
        """The weighted sum of VTC, VTM and MLM on one batch of videos or of images; nothing of them is masked."""
        del masked
        key_of = self.key_of(batch, key)

        # Encode the frames, each block looking over time at its end.
        video = self.encode_video(batch.video)

        # Encode the words, once whole and once masked; contrast, towards what a teacher sees where there is one.
        words = self.read(batch, key_of(1))
        taught = None if teacher is None else self.taught(teacher, teacher.encode_video(batch.video), batch)
        contrast = self.contrast(video, words, batch, taught)

        # Fuse all frames with the true, the hard-negative and the masked words.
        fused = self.match_and_complete(video, words, contrast, batch, key_of)
        return self.total(contrast, fused)
