"""Which languages a text is written in, as its letters show."""

import re

LATIN, CYRILLIC, HAN = "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ", "Ѐ-ԯ", "㐀-䶿一-鿿豈-﫿"
SCRIPTS = {  # language -> its letters, as in a class of a regular expression
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "vi", "id"), LATIN),
    **dict.fromkeys(("ru", "uk", "bg"), CYRILLIC),
    "zh": HAN,
    "ja": f"{HAN}ぁ-ゟァ-ヿ",
    "ko": "가-힣ᄀ-ᇿ㄰-㆏",
    "ar": "ء-ۿ",
    "fa": "ء-ۿ",
    "he": "א-ת",
    "hi": "ऄ-ॿ",
    "el": "Ͱ-Ͽ",
    "th": "ก-๏",
}
_OF = {letters: re.compile(f"[{letters}]+") for letters in SCRIPTS.values()}
_ENGLISH, _CHINESE = re.compile("[A-Za-z]"), re.compile("[一-鿿]")


def share_of_letters(text: str, language: str) -> float:
    """The share of a text's letters that the language is written with; 0 without any letter.

    Languages of one script look alike: a French word counts as English.
    """
    letters = "".join(filter(str.isalpha, text))
    own = _OF[SCRIPTS[language]].findall(letters)
    return sum(map(len, own)) / len(letters) if letters else 0.0


def mix(text: str) -> str:
    """``mixed``, ``english`` or ``chinese`` by which of A-Z and U+4E00 to U+9FFF a text has, or "" (DeepEnlighten)."""
    english, chinese = _ENGLISH.search(text), _CHINESE.search(text)
    if english and chinese:
        return "mixed"
    return "english" if english else "chinese" if chinese else ""
