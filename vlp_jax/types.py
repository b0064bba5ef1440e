"""The typed things that travel between the rooms, and the legend of shape letters.

Letters used in names and docstrings of the whole code base::

    B batch          T frames (tubelet slots)   H W pixels        P pixels of one patch
    N patches of a frame                        K kept patches of a frame
    L text tokens    D width                    V vocabulary      A attention heads
    Dh width of one head                        S tokens of one sequence
"""

import dataclasses
from typing import Any

import jax


class UserError(Exception):
    """Something the user can mend: binaries print it as one message, without a traceback, and exit with status 2.

    The text quotes the offending value, says what was expected, and how to fix it.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    """One global or per-host batch; every leaf has the examples on its leading axis.

    Attributes:
      video: uint8 `[B, T, H, W, 3]`, RGB in 0..255; normalised on the device. Of precomputed features
        (`config.input.features`) float32 `[B, T, R, width + boxes]`, see `models.precomputed`.
      text_ids: int32 `[B, L]` token ids, `PAD` to the right.
      text_mask: bool `[B, L]`, True on tokens (specials included), False on padding.
      valid: bool `[B]`; False where the clip did not decode or the row is padding. Such a row takes part in no loss,
        no negative and no metric.
      index: int32 `[B]`, position of the example in the run's endless stream, `step * batch_size + row`. Random keys
        are folded from it, so masks do not depend on the number of devices or hosts.
      positive_id: int32 `[B]`; two rows with the same number are positives of each other (the same clip, or the same
        caption where `input.positives = 'caption'`).
      targets: what a task asks for besides the text, by name; {} in pre-training. int32 and bool arrays:
        `question_answering` (text_ids is the question): label `[B]`, the answer's number in the answer list, -1 where
        it is not in the list; answer_ids, answer_mask `[B, La]`, its tokens. `multiple_choice`: option_ids, option_mask
        `[B, O, L]`, each option after the question where there is one; label `[B]`, the true option, -1 where options
        or answer are odd. `classification`: label `[B]`, -1 for an unknown class. Padding has label -1 and empty texts,
        [CLS] [SEP].
    """

    video: Any
    text_ids: Any
    text_mask: Any
    valid: Any
    index: Any
    positive_id: Any
    targets: dict[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Outputs:
    """What a recipe's `loss` returns.

    Attributes:
      loss: float32 scalar, the weighted sum of the mean terms; what is differentiated.
      terms: name -> `(sum, count)`, two float32 scalars each. `sum / count` is the mean over the global batch.
      measurements: name -> `(sum, count)` as well: accuracies, temperature, keep shares; never differentiated.
    """

    loss: Any
    terms: dict[str, tuple[Any, Any]]
    measurements: dict[str, tuple[Any, Any]]
