"""How a service proves itself to the server: its settings as the library's options, with a word on what is wrong."""

import ssl
from typing import Any

import nkeys  # type: ignore[import-untyped]

from services.runtime.errors import Fatal
from services.runtime.settings import BusSettings


def options_of(settings: BusSettings) -> dict[str, Any]:
    """The options; raises Fatal for a file that cannot be used, which the library would not name."""
    for name in ("nkey_seed_file", "credentials_file", "ca_file", "certificate_file"):
        path = getattr(settings, name)
        try:
            content = b"" if path is None else path.read_bytes()
            if path is not None and name == "nkey_seed_file":
                nkeys.from_seed(bytearray(content.strip())).wipe()
        except OSError as error:
            raise Fatal(f"bus.{name} is {str(path)!r}, which cannot be read: {error.strerror}") from None
        except nkeys.NkeysError as error:
            raise Fatal(f"bus.{name} is {str(path)!r}: expected the seed of an nkey: {error}") from None
    options: dict[str, Any] = {
        "user": settings.user,
        "password": settings.password.get_secret_value() if settings.password else None,
        "user_credentials": str(settings.credentials_file) if settings.credentials_file else None,
        "nkeys_seed": str(settings.nkey_seed_file) if settings.nkey_seed_file else None,
    }
    if settings.ca_file is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=str(settings.ca_file))
        except ssl.SSLError as error:
            raise Fatal(f"bus.ca_file is {str(settings.ca_file)!r}: expected certificates: {error}") from None
    if settings.ca_file is not None and settings.certificate_file is not None:
        try:
            options["tls"].load_cert_chain(settings.certificate_file)
        except ssl.SSLError as error:
            said = f"expected a certificate with its key: {error}"
            raise Fatal(f"bus.certificate_file is {str(settings.certificate_file)!r}: {said}") from None
    return options
