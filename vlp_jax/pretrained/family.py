"""A published family of encoders as one of our towers: which rules hold, what must agree, and what was taken.

A text encoder's first layers encode the words, its next ones become the fusion, as in ALBEF and Singularity: of BERT's
12 layers the first 9 are the text encoder's, the last 3 the fusion's, whose cross-attention starts at random. A file
with no layers beyond the text encoder's leaves the fusion as it was. An image encoder sees each frame by itself.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vlp_jax import config as config_lib
from vlp_jax.models.layers import ACTIVATIONS
from vlp_jax.pretrained import rules as rules_lib
from vlp_jax.pretrained.rules import Rule
from vlp_jax.pretrained.weights import Tensors
from vlp_jax.types import UserError
from vlp_jax.warm_start import Report, Taken

_KERNEL = "vision/embed/kernel"
_DECODER_SIZES = {  # as `Family.sizes`
    "decoder_hidden_size": "model.decoder.width",
    "decoder_num_attention_heads": "model.decoder.heads",
    "decoder_num_hidden_layers": "model.decoder.layers",
    "layer_norm_eps": "model.decoder.norm_epsilon",
}
# Of a parameter whose shape does not fit: what decides it.
_HINTS = {
    "text/embedding": "Set config.input.tokenizer to that model's vocab.txt or tokenizer.json",
    "text/position": "Set config.input.max_text_tokens to at most the rows that it has",
    "video_projection/kernel": "Set config.model.projection to the width of its shared space",
    "text_projection/kernel": "Set config.model.projection to the width of its shared space",
}
_IN_FUSION = {"text/": "fusion/", "norm_attention/": "norm_self/", "/attention/": "/self_attention/"}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family names and shapes its tensors.

    Attributes:
      model_type: of its config.json.
      prefixes: what its names may begin with, by the class that was saved.
      embedding, layer: rules of what comes before the layers (and after them), and of one layer `{i}`.
      optional: rules that hold where the file has their tensors.
      ignored: regular expressions of names that it has and we have no use for.
      sizes: key of its config.json -> our knob, which must have that value.
      hidden, layers: its keys of the MLP's width and of the number of layers.
      fixed: key of its config.json -> the one value that our code computes.
      knobs: our knob -> the value that it must have, whatever config.json says.
      others: what a config.json that we write holds besides.
      defaults: what transformers takes for keys that a config.json leaves out.
      aliases: other model_types of its form.
      section: the part of config.json that is of this tower; "" where it has no other.
      tower: our part, `text` or `vision`, of the parameters and of config.model.
      scope: our modules that it may fill.
    """

    model_type: str
    prefixes: tuple[str, ...]
    embedding: tuple[Rule, ...]
    layer: tuple[Rule, ...]
    ignored: tuple[str, ...]
    sizes: Mapping[str, str]
    hidden: str = "intermediate_size"
    layers: str = "num_hidden_layers"
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optional: tuple[Rule, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    section: str = ""

    tower: ClassVar[str]
    scope: ClassVar[tuple[str, ...]]

    def rename(self, name: str) -> str:
        """A name in a file as the rules write it."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))

    def rules(self, config: Any, ours: Sequence[str], names: set[str]) -> list[Rule]:
        """The rules of those of our parameters that the file has something for.

        Args:
          ours: our parameters.
          names: those of the file, renamed.
        """
        there = [rule for rule in self.optional if rule.theirs[0] in names]
        return [rule for rule in (*self.embedding, *self.layer, *there) if rule.ours in ours]

    def may_ignore(self, config: Any) -> tuple[str, ...]:
        """Regular expressions of names that may be left out."""
        return self.ignored

    def spare(self) -> set[str]:
        """Names, beside those of layers, that a file may have and our model not."""
        return {name for rule in self.optional for name in rule.theirs}

    def check_config(self, config: Any, theirs: Mapping[str, Any], source: str) -> None:
        """Refuses a model of another shape, by the config.json beside the weights, {} where there is none.

        Raises:
          UserError: every knob that differs, with the flag that mends it.
        """
        theirs = self.completed(theirs)
        for key, only in self.fixed.items():
            if theirs.get(key, only) != only:
                raise UserError(
                    f"{source}: {key} = {theirs[key]!r} in config.json, of which only {only!r} is supported"
                )
        values, own = config_lib.leaves(config), f"model.{self.tower}"
        expected = self.expected(config, theirs)
        activation = expected.get(f"{own}.activation", "gelu")
        if activation not in ACTIVATIONS:
            raise UserError(
                f"{source} has the activation {activation!r} in config.json; expected one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden in theirs:
            width = expected.get(f"{own}.width", values[f"{own}.width"])
            expected[f"{own}.mlp_ratio"] = theirs[self.hidden] / width
        differ = {knob: value for knob, value in expected.items() if not _equal(values[knob], value)}
        if differ:
            flags = " ".join(f"--config.{knob}={value}" for knob, value in differ.items())
            have = ", ".join(f"{knob} = {values[knob]}" for knob in differ)
            raise UserError(f"{source} is of another shape than the model ({have}): set {flags}")
        self.check_layers(theirs.get(self.layers), values[f"{own}.layers"], source)

    def completed(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with its section for this tower on top, and what it leaves out; {} of none."""
        return {**self.defaults, **theirs, **theirs.get(self.section, {})} if theirs else {}

    def expected(self, config: Any, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Our knobs and the values that they must have."""
        return {knob: theirs[key] for key, knob in self.sizes.items() if key in theirs} | dict(self.knobs)

    def check_layers(self, there: int | None, here: int, source: str) -> None:
        """Refuses another number of layers; None where it is not known."""
        if there is not None and there != here:
            raise UserError(
                f"{source} has {there} layers, config.model.{self.tower}.layers = {here}: set it to {there}"
            )

    def load(
        self, config: Any, params: Mapping[str, tuple[int, ...]], tensors: Tensors, source: str
    ) -> tuple[dict[str, np.ndarray], Report]:
        """Takes over a file.

        Args:
          params: shapes of the recipe's parameters, by path.

        Returns:
          Our parameters that come from it, float32; and what was done.

        Raises:
          UserError: a tensor that is missing, of another shape or type, or that nothing is known about.
        """
        there = {self.rename(name): name for name in tensors.names()}
        depth = self._depth(there)
        self.check_layers(depth or None, config.model[self.tower].layers, source)
        rules = self.rules(config, list(params), set(there))
        try:
            rules_lib.check(rules, params, tensors, self.rename)
        except UserError as error:
            hints = [hint for name, hint in _HINTS.items() if f"{name} needs" in str(error)]
            raise UserError(
                f"{source} does not fit this model: {error}. {'; '.join(hints)}{'; or ' if hints else ''}"
                f"compare config.model.{self.tower} and config.input with that model, or fetch the file anew"
            ) from error
        used = {name for rule in rules for names in rule.names(params[rule.ours]) for name in names}
        layers = [set(self.names_of_layer(i)) for i in range(depth)]
        beyond = self.spare().union(*(names for names in layers if not names & used))
        self._check_places(params, there, depth, source)
        odd = [
            x for x in there if x not in used and x not in beyond and not rules_lib.matches(self.may_ignore(config), x)
        ]
        if odd:
            shown = ", ".join(sorted(odd)[:5])
            raise UserError(
                f"{source} holds {len(odd)} tensors that a {self.model_type} model does not have, such as {shown}: it "
                f"is of another architecture or has more layers, or it is damaged; expected a model of model_type "
                f"{self.model_type!r}"
            )
        values, taken, why = {}, {}, {}
        for rule in rules:
            shape = params[rule.ours]
            values[rule.ours] = rules_lib.take(rule, shape, tensors, there)
            first = tensors.describe(there[rule.names(shape)[0][0]])[0]
            own, origin = rule.own(shape), " + ".join(name.replace("{i}", "*") for name in rule.theirs)
            there_own = rule.origin(own, first)
            if there_own != own:
                whole = (*shape[: -len(own)], *there_own)
                taken[rule.ours] = Taken("interpolated", origin, shape, whole, rule.how.note)
            elif rule.how.rows and first != rule.stored(own)[0]:
                taken[rule.ours] = Taken("resized", origin, shape, first)
            else:
                taken[rule.ours] = Taken("loaded", origin, shape, shape, rule.how.note)
        scope = (*self.scope, *{f"{rule.ours.split('/')[0]}/" for rule in rules})
        for name, shape in params.items():
            if name.startswith(scope) and name not in taken:
                taken[name], why[name] = Taken("created", "", shape), "is not there"
        left = {name: tensors.describe(there[name])[0] for name in there if name not in used}
        return values, Report(source, None, taken, left, why)

    def _check_places(self, params: Mapping[str, Any], there: Mapping[str, str], depth: int, source: str) -> None:
        """Refuses a part of the model that ours has not, such as BEiT's layer scale where config has none."""
        for rule in (*self.embedding, *self.layer):
            for name in {name.format(i=i) for name in rule.theirs for i in range(depth)}:
                if rule.ours not in params and name in there:
                    raise UserError(
                        f"{source} holds {name}, but this model has no {rule.ours}: compare config.model.{self.tower} "
                        "with that model"
                    )

    def names_of_layer(self, number: int) -> list[str]:
        """Names of all tensors of one layer."""
        return [name.format(i=number) for rule in self.layer for name in rule.theirs]

    def config_of(self, config: Any, theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The config.json of our tower.

        Args:
          theirs: its tensors, by the family's names.
        """
        values, own = config_lib.leaves(config), config.model[self.tower]
        return {
            "model_type": self.model_type,
            **{key: values[knob] for key, knob in self.sizes.items()},
            self.hidden: round(own.width * own.mlp_ratio),
            self.layers: own.layers,
            **self.fixed,
            **self.others,
        }

    def _depth(self, names: Mapping[str, str]) -> int:
        pattern = re.escape(self.layer[0].theirs[0]).replace(re.escape("{i}"), r"(\d+)")
        return 1 + max((int(m[1]) for name in names if (m := re.fullmatch(pattern, name))), default=-1)


@dataclasses.dataclass(frozen=True)
class TextFamily(Family):
    """A text encoder.

    Attributes:
      vocabulary, positions: its keys of the numbers of pieces and of positions.
    """

    vocabulary: str = "vocab_size"
    positions: str = "max_position_embeddings"

    tower = "text"
    scope = ("text/", "fusion/", "word_head/")

    def rules(self, config: Any, ours: Sequence[str], names: set[str]) -> list[Rule]:
        """As `Family`: the layers that the text encoder leaves are the fusion's, where the file has them."""
        depth, wanted = config.model.text.layers, super().rules(config, ours, names)
        if any(name in names for name in self.names_of_layer(depth)):
            wanted += rules_lib.moved(self.layer, _IN_FUSION, depth)
        return [rule for rule in wanted if rule.ours in ours]

    def check_layers(self, there: int | None, here: int, source: str) -> None:
        """As `Family`; there may be more."""
        if there is not None and there < here:
            raise UserError(
                f"{source} has {there} layers, config.model.text.layers = {here}: set it to {there} or less; what is "
                "beyond it becomes the fusion's"
            )

    def config_of(self, config: Any, theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """As `Family`, with the sizes of both tables."""
        words, table = (theirs[rule.theirs[0]] for rule in self.embedding[:2])
        return super().config_of(config, theirs) | {self.vocabulary: len(words), self.positions: len(table)}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The pixel decoder that a family was trained with; ours takes it where `config.model.decoder.from_file` says so.

    Attributes:
      rules: of what is around its layers, and of one layer `{i}`.
      ignored: regular expressions of its names.
      knobs: as of `Family`; where its targets are not normalised (`norm_pix_loss`), `decoder.target` is pixels.
      pixels: what these are then: `own`, of the mean and deviation that the encoder was trained with, or `unit`, in
        [0, 1].
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]
    knobs: Mapping[str, Any]
    pixels: str


@dataclasses.dataclass(frozen=True)
class VisionFamily(Family):
    """An encoder of images, of which each frame is one, or of clips.

    Attributes:
      frames: that one of its patches spans. Those of one frame are inflated to `config.model.vision.tubelet`.
      decoder: None where it has none.
    """

    frames: int = 1
    decoder: Decoder | None = None

    tower = "vision"
    scope = ("vision/",)

    def rules(self, config: Any, ours: Sequence[str], names: set[str]) -> list[Rule]:
        """As `Family`, and the decoder's where they are asked for."""
        own = super().rules(config, ours, names)
        if not config.model.decoder.from_file:
            return own
        if self.decoder is None:
            raise UserError(
                f"config.model.decoder.from_file = True, but a {self.model_type} has no pixel decoder: expected a "
                "vit_mae or videomae in config.model.vision.init_from, or from_file=False"
            )
        return own + [rule for rule in self.decoder.rules if rule.ours in ours]

    def expected(self, config: Any, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """As `Family`, and the decoder's where it is asked for."""
        own = super().expected(config, theirs)
        if self.decoder is None or not config.model.decoder.from_file:
            return own
        sizes = {knob: theirs[key] for key, knob in _DECODER_SIZES.items() if key in theirs}
        raw = {} if theirs.get("norm_pix_loss", True) else {"model.decoder.target": "pixels"}
        return own | sizes | dict(self.decoder.knobs) | raw

    def may_ignore(self, config: Any) -> tuple[str, ...]:
        """As `Family`; a decoder that is not asked for is left out."""
        left_out = () if self.decoder is None or config.model.decoder.from_file else self.decoder.ignored
        return (*self.ignored, *left_out)

    def names_of_layer(self, number: int) -> list[str]:
        """As `Family`, those of the decoder's layer too."""
        more = () if self.decoder is None else self.decoder.rules
        theirs = [name for rule in more for name in rule.theirs if "{i}" in name]
        return super().names_of_layer(number) + [name.format(i=number) for name in theirs]

    def load(
        self, config: Any, params: Mapping[str, tuple[int, ...]], tensors: Tensors, source: str
    ) -> tuple[dict[str, np.ndarray], Report]:
        """As `Family`, the patches of one frame inflated to tubelets."""
        tubelet, how = config.model.vision.tubelet, config.model.vision.inflate
        if self.frames > 1 or tubelet == 1:
            return super().load(config, params, tensors, source)
        rows, width = params[_KERNEL]
        values, report = super().load(config, {**params, _KERNEL: (rows // tubelet, width)}, tensors, source)
        values[_KERNEL] = inflate(values[_KERNEL], tubelet, how)
        image = report.taken[_KERNEL]
        where = "all in the middle one" if how == "centre" else "an equal share in each"
        note = f"patches of one frame inflated to {tubelet}, {where}"
        report.taken[_KERNEL] = Taken("inflated", image.origin, (rows, width), image.shape, note)
        return values, report

    def config_of(self, config: Any, theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """As `Family`, with the size of the clips."""
        sizes = {"image_size": config.input.image_size, "num_frames": config.input.frames}
        return super().config_of(config, theirs) | sizes


def inflate(kernel: np.ndarray, tubelet: int, how: str) -> np.ndarray:
    """The kernel of patches of one frame for tubelets, `[P, D] -> [tubelet P, D]`: equal frames give what one gave.

    Args:
      how: `centre`, all of it in frame `tubelet // 2` (ViViT, arXiv 2103.15691, section 3.4), or `mean`, a share of
        `1 / tubelet` in each (I3D, arXiv 1705.07750, section 2.4.1).
    """
    share = np.full(tubelet, 1 / tubelet) if how == "mean" else np.eye(tubelet)[tubelet // 2]
    return np.concatenate([kernel * np.float32(x) for x in share])


def _equal(ours: Any, theirs: Any) -> bool:
    return math.isclose(ours, theirs, rel_tol=1e-9) if isinstance(theirs, float) else ours == theirs
