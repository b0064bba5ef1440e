"""Every argument of configs/smaug.py is a valid run; those of published encoders have all of the encoder's form."""

import pytest

from configs import smaug
from vlp_jax import config as config_lib
from vlp_jax import validation
from vlp_jax.pretrained import importing
from vlp_jax.types import UserError

GIVEN = {"input.path": "somewhere", "input.features.path": "features", "input.features.width": 512}


@pytest.mark.parametrize("size", smaug.SIZES)
@pytest.mark.parametrize("variant", smaug.VARIANTS)
def test_every_variant_of_every_size_is_a_valid_config(size, variant):
    config = smaug.get_config(f"{size}_{variant}" if variant else size)
    given = {key: value for key, value in GIVEN.items() if variant == "features" or "features" not in key}
    validation.validate(config_lib.update(config, given))


@pytest.mark.parametrize("family", smaug.PUBLISHED)
def test_base_takes_a_published_encoder_of_base_size_without_a_further_flag(family):
    theirs = {"model_type": family}  # what config.json leaves out is of base size
    importing.VISION[family].check_config(smaug.get_config(f"base_{family}"), theirs, "folder")
    with pytest.raises(UserError, match=r"--config\.model\.vision\.positions="):
        importing.VISION[family].check_config(smaug.get_config("base"), theirs, "folder")


def test_another_argument_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match=r"base_video: expected one of tiny.*_videomae"):
        smaug.get_config("base_video")
