"""Addresses: which can be used, and that nothing secret of one is ever shown."""

from __future__ import annotations

import pytest

from harness.common.addresses import address_problem, shown, without_secrets


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://localhost:99999", "its port is no number"),
        ("http://user:secret@host:notaport/", "its port is no number"),
        ("http://user:sec/ret@host:5000", "%2F"),
        ("http://[::1", "IPv6"),
        ("http://", "names no server"),
        ("https://:5000", "names no server"),
        ("http://host:0", "its port is no number"),
        ("  ", "empty"),
    ],
)
def test_an_address_that_cannot_be_used_is_said_to_be_one(uri: str, words: str) -> None:
    problem = address_problem(uri)
    assert problem is not None
    assert words in problem
    assert "sec" not in problem


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:pa@ss@host:5000",
        "http://[::1]:5000",
        "https://host/mlflow?api_key=ABC",
        "postgresql://u:p%40x@h/db",
        "sqlite:////a/b.db",
        "databricks://profile",
        "databricks",
        "file:/somewhere/mlruns",
    ],
)
def test_addresses_of_servers_and_stores_can_be_used(uri: str) -> None:
    assert address_problem(uri) is None


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("http://u:p@host:1/x", "http://host:1/x"),
        ("http://tok:secret@127.0.0.1:9/x?api_key=ABC#part", "http://127.0.0.1:9/x"),
        ("http://user:pa@ss@host:5000", "http://host:5000"),
        ("postgresql://u:p%40x@h/db?sslpassword=q", "postgresql://h/db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("sqlite:////a/b.db?key=ABC", "sqlite:////a/b.db"),
        ("http://user:secret@[::1", "an address that cannot be read"),
        ("http://user:secret@host:notaport/", "http://host:notaport/"),
    ],
)
def test_what_is_shown_of_an_address_holds_no_secret(uri: str, seen: str) -> None:
    assert shown(uri) == seen


@pytest.mark.parametrize(
    ("text", "uri", "clean"),
    [
        ("GET http://u:secret@h/x failed", "http://u:secret@h", "GET http://h/x failed"),
        ("decoded p@ss and written p%40ss", "http://user:p%40ss@h", "decoded *** and written ***"),
        ("user 'user' has not 'secret'", "http://user:secret@h", "user 'user' has not '***'"),
        ("GET /x?api_key=ABCD&y=1", "https://h/x?api_key=ABCD&y=1", "GET /x"),
        ("key ABCD is not valid", "https://h/x?api_key=ABCD", "key *** is not valid"),
        ("bad http://u:secret@[::1", "http://u:secret@[::1", "bad an address that cannot be read"),
        ("no secret at all", "sqlite:////a/b.db", "no secret at all"),
    ],
)
def test_a_librarys_message_is_shown_without_the_secrets_of_the_address(text: str, uri: str, clean: str) -> None:
    assert without_secrets(text, uri) == clean
