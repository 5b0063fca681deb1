import pytest

from strands_psycopg.storage.text_search import searchable_text
from strands_psycopg.words import tsquery


@pytest.mark.parametrize(
    ("key", "data", "text"),
    [
        ("memory/a/dark-mode.md", b"Use dark mode!", "dark mode use dark mode "),
        ("notes", "Größe: 3.10 (ЖУК), a_b@c.de".encode(), "notes größe 3 10 жук a b c de"),
        (".hidden", b"", " hidden "),
        ("a.tar.gz", b"x", "a tar x"),
        ("k", b"NUL\0inside", None),
        ("k", b"\xff\xfe", None),
        ("k", b"x" * 65_536, "k " + "x" * 65_536),
        ("k", b"x" * 65_537, None),
    ],
)
def test_searchable_text_of_a_value(key: str, data: bytes, text: str | None) -> None:
    assert searchable_text(key, data) == text


def test_a_query_matches_any_of_its_words() -> None:
    assert (
        tsquery("What is the Dark-Mode, dark or not?", frozenset({"what", "is", "the", "or", "not"})) == "dark | mode"
    )
    assert tsquery("?! \0 &|:*'\\", frozenset()) == ""
    assert tsquery("the", frozenset({"the"})) == ""


def test_only_the_first_words_of_a_long_query_count() -> None:
    assert tsquery(" ".join(map(str, range(100))), frozenset()) == " | ".join(map(str, range(64)))
