"""The codec between names and subject tokens, and the partition of a model."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.subjects import PARTITIONS, decode_token, encode_token, partition_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TOKEN = re.compile(r"[A-Za-z0-9_=-]+")


@given(NAMES)
@example("meta-llama/Llama-3.1-8B")
@example("=2F")
@example("a.b.*.>")
@example(" \t\r\n\x00")
@example("日本語 🚀")
def test_any_name_comes_back_from_its_token(name: str):
    assert decode_token(encode_token(name)) == name


@given(NAMES)
def test_a_token_holds_only_letters_digits_dash_underscore_and_equals(name: str):
    assert TOKEN.fullmatch(encode_token(name))


@given(NAMES, NAMES)
@example("a/b", "a=2Fb")
def test_two_names_never_share_a_token(one: str, other: str):
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(st.one_of(st.text(), st.from_regex(r"([A-Za-z0-9_=.-]|=[0-9A-Fa-f]{2})+", fullmatch=True)))
@example("")
@example("=2f")
@example("=41")
@example("=C3")
@example("=ED=A0=80")
@example("a b")
@example("a\n")
@example("=2F\n")
@example("Ａ")
def test_what_is_decoded_is_written_back_the_same_and_all_else_is_refused(token: str):
    try:
        name = decode_token(token)
    except ValueError:
        return
    assert encode_token(name) == token


@pytest.mark.parametrize("token", ["", "=2f", "=41", "=2", "a.b", "a b", "=C3", "=ED=A0=80", "a\n", "%2F"])
def test_what_the_codec_does_not_write_is_refused(token: str):
    with pytest.raises(ValueError):
        decode_token(token)


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="empty"):
        encode_token("")


@pytest.mark.parametrize(
    ("model", "partition"),
    [
        ("meta-llama/Llama-3.1-8B", "56"),
        ("mistralai/Mixtral-8x7B", "56"),
        ("Qwen/Qwen2.5-0.5B", "32"),
        ("m", "40"),
    ],
)
def test_the_partition_of_a_model_never_changes(model: str, partition: str):
    assert partition_of(model) == partition


@given(NAMES)
def test_every_model_has_one_of_the_partitions(model: str):
    assert 0 <= int(partition_of(model)) < PARTITIONS
