"""RoBERTa (arXiv 1907.11692) as transformers stores it: BERT's layers, two rows before the first position, one token
type."""

from vlp_jax.pretrained import bert
from vlp_jax.pretrained.family import TextFamily
from vlp_jax.pretrained.rules import LINEAR, Rule, positions

FAMILY = TextFamily(
    model_type="roberta",
    prefixes=("roberta.",),
    embedding=(
        Rule("text/embedding", ("embeddings.word_embeddings.weight",)),
        Rule(
            "text/position",
            ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
            positions(offset=2, types=1),
        ),
        Rule("text/norm_embedding/scale", ("embeddings.LayerNorm.weight",)),
        Rule("text/norm_embedding/bias", ("embeddings.LayerNorm.bias",)),
    ),
    layer=bert.LAYER,
    optional=(
        Rule("word_head/transform/kernel", ("lm_head.dense.weight",), LINEAR),
        Rule("word_head/transform/bias", ("lm_head.dense.bias",)),
        Rule("word_head/norm/scale", ("lm_head.layer_norm.weight",)),
        Rule("word_head/norm/bias", ("lm_head.layer_norm.bias",)),
        Rule("word_head/bias", ("lm_head.bias",)),
    ),
    # The decoder is tied to the embedding.
    ignored=(r"embeddings\.position_ids", r"pooler\..*", r"lm_head\.decoder\..*"),
    sizes=bert.FAMILY.sizes,
    # Positions are numbered from the id of padding on.
    fixed={**bert.FIXED, "pad_token_id": 1},
    defaults=bert.DEFAULTS,
    knobs=bert.KNOBS,
    others={"architectures": ["RobertaModel"], "type_vocab_size": 1, "pad_token_id": 1},
)
