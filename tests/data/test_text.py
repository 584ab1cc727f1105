"""Texts: only wrong decoding is repaired, and scripts without spaces count by character."""

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.text import first_words, mend, normalise, segments, text_key

ORDINARY = [
    "write &lt;b&gt;, not &amp;lt;b&amp;gt;",
    "&eacute;&nbsp;&#39;&quot;",
    "“curly”, ‘single’ and „low“",
    "ﬁrst ﬂoor, o\ufb03ce",
    "Ｗｉｄｅ ｶﾅ １２",
    "e\u0301 in two parts",
    "½ … ™ ² Å",
    "soft\xadhyphen and zero\u200bwidth",
]
BROKEN = {
    "cafÃ©": "café",
    "the cityâ€™s": "the city’s",
    "â€œquotedâ€\x9d": "“quoted”",
    "schÃ¶n &lt;b&gt;": "schön &lt;b&gt;",
    "Ã©tÃ© &amp; “hiver”": "été &amp; “hiver”",
    "\ufefffirst": "first",
    "half \ud83d": "half \ufffd",
}
WORDS = {  # each text with its segments between spaces
    "Bees eat nectar.": "Bees eat nectar.",
    " two \n words\t": "two words",
    "蜂は花の蜜を吸う。": "蜂 は 花 の 蜜 を 吸 う 。",
    "ミツバチ": "ミ ツ バ チ",
    "蜜蜂采蜜，冬天休息。": "蜜 蜂 采 蜜 ， 冬 天 休 息 。",
    "𠮷野": "𠮷 野",
    "ผึ้ง": "ผ ึ ้ ง",
    "ເຜິ້ງ": "ເ ຜ ິ ້ ງ",
    "ဖြူ": "ဖ ြ ူ",
    "ឃ្មុំ": "ឃ ្ ម ុ ំ",
    "東京 Tower 333m": "東 京 Tower 333m",
    "2024年5月": "2024 年 5 月",
    "iPS細胞とは何か": "iPS 細 胞 と は 何 か",
    "꿀벌은 꿀을 모은다": "꿀벌은 꿀을 모은다",
    "Пчёлы ищут нектар": "Пчёлы ищут нектар",
    "النحل يجمع الرحيق": "النحل يجمع الرحيق",
    "": "",
    "\u3000\n": "",
}


# --- mending and comparing ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ORDINARY)
def test_html_quotes_ligatures_and_widths_are_left_as_they_are(text):
    assert mend(text) == text


@pytest.mark.parametrize(("broken", "mended"), BROKEN.items(), ids=ascii)
def test_text_that_was_decoded_wrongly_is_repaired_and_the_rest_of_it_kept(broken, mended):
    assert mend(broken) == mended
    assert mend(mended) == mended


@given(st.text("aÃ©â€™ \n&;lt“ﬁＷé"))
def test_what_ftfy_does_beyond_decoding_is_not_done(text):
    settings = {"uncurl_quotes": False, "fix_latin_ligatures": False, "fix_character_width": False}
    assert mend(text) == ftfy.fix_text(text, unescape_html=False, normalization=None, **settings)
    assert mend(text).count("&") >= text.count("&")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is a cafÃ©", "What is\na CAFÉ "),
        ("the cityâ€™s bees", "the city’s  bees"),
        ("STRASSE", "straße"),
        ("&lt;b&gt;", "&LT;B&GT;"),
    ],
)
def test_texts_alike_but_for_decoding_case_and_white_space_have_one_key(one, other):
    assert text_key(one) == text_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("&lt;b&gt;", "<b>"), ("“bees”", '"bees"'), ("café", "cafe"), ("bees?", "bees")]
)
def test_texts_that_differ_in_more_have_two_keys(one, other):
    assert text_key(one) != text_key(other)


def test_white_space_alone_has_an_empty_key():
    assert text_key(" \u3000\n\ufeff") == text_key("") == ""


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), WORDS.items(), ids=ascii)
def test_a_text_is_split_at_white_space_and_between_characters_of_scripts_without_spaces(text, expected):
    assert segments(text) == expected.split()


def segments_by_hand(text):
    """Words by a loop over characters; a character of a script without spaces is a word."""
    found, word = [], ""
    for character in text:
        code = ord(character)
        alone = (
            0x0E00 <= code <= 0x0EFF
            or 0x1000 <= code <= 0x109F
            or 0x1780 <= code <= 0x17FF
            or 0x3040 <= code <= 0x30FF
            or 0x3400 <= code <= 0x4DBF
            or 0x4E00 <= code <= 0x9FFF
            or code >= 0x20000
        )
        if alone or character.isspace():
            found += [word, character if alone else ""]
            word = ""
        else:
            word += character
    return [part for part in [*found, word] if part]


mixed = st.text(st.sampled_from("ab 1\n\u3000、。東京ミの蜜ผึญ꿀é\u2028"), max_size=12)


@given(mixed)
def test_segments_are_those_of_a_loop_over_characters(text):
    assert segments(text) == segments_by_hand(text)
    assert "".join(segments(text)) == "".join(text.split())


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"], max_codepoint=0x4FF), min_size=1)))
def test_a_text_in_a_script_with_spaces_has_the_words_that_split_finds(words):
    assert segments(" ".join(words)) == words


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("Bees  eat\nnectar and pollen", 2, "Bees eat …"),
        ("Bees  eat", 2, "Bees eat"),
        ("Bees eat", 3, "Bees eat"),
        ("蜂は花の蜜を吸う。", 4, "蜂は花の …"),
        ("蜂は花の蜜を吸う。", 9, "蜂は花の蜜を吸う。"),
        ("東京 Tower 333m の 高さ", 4, "東京 Tower 333m …"),
        ("ผึ้งดูดน้ำหวาน", 4, "ผึ้ง …"),
        (" \n", 3, ""),
    ],
)
def test_the_first_words_of_a_text_end_in_a_sign_that_it_goes_on(text, count, shown):
    assert first_words(text, count) == shown


@given(mixed, st.integers(1, 6))
def test_the_first_words_are_so_many_and_the_texts_own(text, count):
    shown = first_words(text, count).removesuffix(" …")
    assert segments(shown) == segments(text)[:count]
    assert normalise(text).startswith(normalise(shown))
    assert first_words(text, count).endswith(" …") is (len(segments(text)) > count)


@pytest.mark.parametrize(
    "word", ["été", "пчёлы", "μέλι", "דבש", "عسل", "मधु", "தேன்", "꿀벌", "մեղր", "თაფლი", "ማር"]
)
def test_a_word_of_a_script_with_spaces_is_one(word):
    assert segments(f"{word} {word}") == [word, word]
