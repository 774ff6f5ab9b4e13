"""Files by which a service proves itself: what cannot be used is told by its setting, its path and what is wrong."""

from pathlib import Path

import nkeys
import pytest
import trustme
from pydantic import ValidationError

from services.runtime.bus.credentials import options_of
from services.runtime.errors import Fatal
from services.runtime.settings import BusSettings


@pytest.mark.parametrize("name", ["nkey_seed_file", "credentials_file", "ca_file"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    settings = BusSettings.model_validate({name: tmp_path / "none"})
    with pytest.raises(Fatal, match=rf"bus\.{name} is '.*/none', which cannot be read: No such file"):
        options_of(settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nkey_seed_file", "the seed of an nkey"),
        ("ca_file", "certificates"),
        ("certificate_file", "a certificate with its key"),
    ],
)
def test_a_file_that_holds_something_else_is_named_with_what_was_expected(
    tmp_path: Path, name: str, expected: str
) -> None:
    (odd := tmp_path / "odd").write_text("odd\n")
    trustme.CA().cert_pem.write_to_path(str(ca := tmp_path / "ca.pem"))
    with pytest.raises(Fatal, match=rf"bus\.{name} is '.*/odd': expected {expected}"):
        options_of(BusSettings.model_validate({"ca_file": ca} | {name: odd}))


def test_a_seed_may_end_with_a_line_and_is_read_by_the_library(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER)
    (file := tmp_path / "seed").write_bytes(seed + b"\n")
    assert options_of(BusSettings(nkey_seed_file=file))["nkeys_seed"] == str(file)


def test_a_certificate_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(ValidationError, match="certificate_file is set without ca_file"):
        BusSettings(certificate_file=Path("ours.pem"))
