"""Strings that tokenizers may disagree on."""

import numpy as np

# Blocks that tokenizers treat in different ways; a string mixes some of them.
ALPHABETS = [
    "abcdefghij ABCDEFGHIJ klmnopqrstuvwxyz 0123456789",
    "éèüñçøåßœæþðıİŁžșǅﬁﬀ ÀÉÎÕÜ",
    "".join(map(chr, range(0x300, 0x370))) + "aeiou ",  # combining
    "🙂👩‍👩‍👧👍🏽🇫🇷❤️🏳️‍🌈",
    "我爱北京天安门。，！？「」㐀豈𠀀",
    "ひらがなカタカナ한국어ハンカク가각",
    "\0\x01\x07\x1b\x7f\x80\x9f\xad\ufffd a",  # control, soft hyphen, replacement
    "\u200b\u200c\u200d\u2060\ufeff\u180e a",  # zero width
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2069שלום مرحبا עולם٠١٢",
    " \t\n\r\v\f\x85\u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000x",
    "!\"#$%&'()*+,-./:;<=>?@\\^_`{|}~¡«»¿–—‘’“”…·§¶†‡°ªº²½€£¥",
    "กำลังเดิน हिन्दी தமிழ் ខ្មែរ",
    "𝓗𝓮𝓵𝓵𝓸 ①②Ⅳ㎏ﷺ 𐐀𐐨 Ωως ΆΈ",
]


def odd_strings(count, seed, any_character):
    """Strings of mixed blocks, after some odd ones: empty, blank, 10,000 characters with and without spaces.

    With `any_character` one in ten has any code points at its end, unassigned ones among them.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, count))))
    texts = ["", " ", "\u200b", "a" * 100, "a" * 101, "ab " * 3334, "x" * 10_000, "é" * 10_000, "我" * 10_000]
    for number in range(count - len(texts)):
        chosen = rng.choice(len(ALPHABETS), rng.integers(1, 4))
        characters = list("".join(ALPHABETS[i] for i in chosen))
        text = "".join(rng.choice(characters, rng.integers(1, 60)))
        if any_character and number % 10 == 0:
            codes = [0xFFFE, *rng.integers(0, 0x110000, 40)]
            text += "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
        texts.append(text)
    return texts
