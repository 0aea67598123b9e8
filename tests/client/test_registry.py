"""Payloads against a registry: what is refused before it is sent, and what a worker gets back."""

from __future__ import annotations

import traceback
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from osqueue_client import JobType, PayloadValidationError
from osqueue_client.registry import PayloadSchemas


class SendEmail(BaseModel):
    to: str
    copies: int = 1


class Measure(BaseModel):
    value: float = 0.0
    more: object = None


class Aliased(BaseModel):
    report_id: int = Field(alias="reportId")


class WrittenOtherwise(BaseModel):
    value: int = Field(validation_alias="in", serialization_alias="out")


SCHEMAS = PayloadSchemas(
    {
        "email:send": SendEmail,
        "measure": Measure,
        "aliased": Aliased,
        "otherwise": WrittenOtherwise,
        "numbers": Annotated[list[int], ["metadata without a hash"]],
    }
)


def test_plain_data_is_sent_as_its_model_makes_it() -> None:
    assert SCHEMAS.to_json("email:send", {"to": "a", "copies": "2"}) == b'{"to":"a","copies":2}'


def test_integer_of_a_hundred_digits_is_sent_digit_for_digit() -> None:
    number = 10**99 + 7
    assert SCHEMAS.to_json("email:send", {"to": "a", "copies": number}) == b'{"to":"a","copies":%d}' % number


def test_aliased_fields_come_back() -> None:
    text = SCHEMAS.to_json("aliased", {"reportId": 1})
    assert text == b'{"reportId":1}'
    assert SCHEMAS.from_json("aliased", text) == Aliased(reportId=1)


def test_anything_that_pydantic_validates_is_a_model() -> None:
    assert SCHEMAS.to_json("numbers", ["1", 2]) == b"[1,2]"
    with pytest.raises(PayloadValidationError):
        SCHEMAS.to_json("numbers", ["x"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_number_that_json_has_not_is_refused_in_a_model(number: float) -> None:
    for payload in ({"value": number}, Measure(value=number), {"more": [{"deep": (number,)}]}):
        with pytest.raises(PayloadValidationError, match="not a JSON number"):
            SCHEMAS.to_json("measure", payload)


def test_instance_that_no_longer_fits_is_refused() -> None:
    changed = SendEmail(to="a")
    changed.to = None  # type: ignore[assignment]  # what a type checker would refuse
    for payload in (changed, SendEmail.model_construct(to=5)):
        with pytest.raises(PayloadValidationError, match="to: "):
            SCHEMAS.to_json("email:send", payload)
        with pytest.raises(PayloadValidationError, match="to: "):
            SCHEMAS.to_json(JobType("email:send", SendEmail), payload)


def test_what_the_worker_could_not_read_is_refused() -> None:
    with pytest.raises(PayloadValidationError, match="in: "):
        SCHEMAS.to_json("otherwise", {"in": 1})


def test_unknown_type_names_the_known_ones() -> None:
    with pytest.raises(PayloadValidationError, match=r"aliased, email:send, measure") as caught:
        SCHEMAS.to_json("email:sent", {})
    assert (caught.value.job_type, caught.value.outcome) == ("email:sent", "not_applied")


def test_payload_is_shown_neither_in_the_error_nor_in_its_traceback() -> None:
    secret = "hunter2"
    for read in (
        lambda: SCHEMAS.to_json("email:send", {"to": [secret]}),
        lambda: SCHEMAS.from_json("email:send", b'{"to":["%s"]}' % secret.encode()),
    ):
        with pytest.raises(PayloadValidationError) as caught:
            read()
        assert secret not in "".join(traceback.format_exception(caught.value))
