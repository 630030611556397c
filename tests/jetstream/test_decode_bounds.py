"""A request's body costs what its bytes cost: the values in it are counted before they are read."""

from __future__ import annotations

import pytest

from nimsnats.jetstream.api import decode as module
from nimsnats.jetstream.api.decode import INT, MOST_VALUES, Struct, decode
from nimsnats.jetstream.errors import ApiError

_ASKED = Struct("Asked", {"offset": INT})


@pytest.mark.parametrize("value", [b"{}", b" {} ", b"null\n", b'{"offset":1}'])
def test_values_beyond_the_bound_are_refused_without_being_read(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decode(value * MOST_VALUES, _ASKED)
    read: list[object] = []
    documents = module.documents

    def watched(text: str):  # type: ignore[no-untyped-def]
        for document in documents(text):
            read.append(document)
            yield document

    monkeypatch.setattr(module, "documents", watched)
    with pytest.raises(ApiError) as refused:
        decode(value * (100 * MOST_VALUES), _ASKED)
    assert refused.value.body() == {
        "code": 400,
        "err_code": 10025,
        "description": f"invalid JSON: more than {MOST_VALUES} values in one request",
    }
    assert len(read) == MOST_VALUES + 1
