"""Payloads against a registry: what is refused before it is sent, and what a worker gets back."""

from __future__ import annotations

import math
import re
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    BaseModel,
    Field,
    Json,
    PlainSerializer,
    PlainValidator,
    RootModel,
    Secret,
    SecretStr,
    TypeAdapter,
    computed_field,
)

from osqueue_client import ConfigError, Job, JobType, OsqueueClient, PayloadValidationError, SyncOsqueueClient
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
    for payload in (
        {"value": number},
        Measure(value=number),
        {"more": [{"deep": (number,)}]},
        {"more": deque([number])},
    ):
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
    reads: tuple[Callable[[], object], ...] = (
        lambda: SCHEMAS.to_json("email:send", {"to": [secret]}),
        lambda: SCHEMAS.from_json("email:send", b'{"to":["%s"]}' % secret.encode()),
    )
    for read in reads:
        with pytest.raises(PayloadValidationError) as caught:
            read()
        assert secret not in "".join(traceback.format_exception(caught.value))


class Login(BaseModel):
    password: SecretStr


class RevealingLogin(BaseModel):
    password: Annotated[
        SecretStr, PlainSerializer(lambda secret: secret.get_secret_value(), when_used="json")
    ]


class Shape(BaseModel):
    name: str


class Circle(Shape):
    radius: float


class Open(Shape, extra="allow"):
    pass


@dataclass
class Point:
    x: float


@dataclass
class Point3(Point):
    z: float


class Drawing(BaseModel):
    shapes: list[Shape] = []
    points: dict[str, Point] = {}
    anything: Any = None


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (Login, Login(password=SecretStr("hunter2"))),
        (Login, {"password": "hunter2"}),
        (Drawing, {"anything": [{"deep": SecretStr("hunter2")}]}),
        (Drawing, {"anything": Secret[int](42)}),
    ],
)
def test_secret_that_would_be_written_as_asterisks_is_refused(
    model: type[BaseModel], payload: object
) -> None:
    instance = TypeAdapter(model).validate_python(payload)
    for schemas, given in (
        (PayloadSchemas({"a": model}), payload),
        (PayloadSchemas({"a": model}), instance),
        (PayloadSchemas(None), instance),
    ):
        with pytest.raises(PayloadValidationError, match="holds a secret") as caught:
            schemas.to_json("a", given)
        assert "hunter2" not in caught.value.message


def test_secret_that_its_field_reveals_comes_back() -> None:
    schemas = PayloadSchemas({"login": RevealingLogin})
    text = schemas.to_json("login", {"password": "hunter2"})
    assert text == b'{"password":"hunter2"}'
    assert schemas.from_json("login", text) == RevealingLogin(password=SecretStr("hunter2"))
    assert PayloadSchemas(None).to_json("a", RevealingLogin(password=SecretStr("hunter2"))) == text


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (Drawing(shapes=[Shape(name="a"), Circle(name="b", radius=1)]), "shapes.1.radius"),
        (Drawing(points={"a": Point3(1, 2)}), "points.a.z"),
        (Drawing(shapes=[Open.model_validate({"name": "a", "more": 1})]), "shapes.0.more"),
    ],
)
def test_fields_of_a_nested_subclass_are_not_dropped_without_a_word(payload: Drawing, field: str) -> None:
    schemas = PayloadSchemas({"draw": Drawing, "shape": Shape})
    with pytest.raises(PayloadValidationError, match=f"its field {re.escape(field)} is one of a subclass"):
        schemas.to_json("draw", payload)
    with pytest.raises(PayloadValidationError, match="its field radius is one of a subclass"):
        schemas.to_json("shape", Circle(name="c", radius=1))


class Square(Shape):
    side: float

    @computed_field  # type: ignore[prop-decorator]  # as pydantic has it
    @property
    def area(self) -> float:
        return self.side**2


class ColouredSquare(Square):
    colour: str = Field(default="red", alias="c")


class Squares(BaseModel):
    square: Square
    by_number: dict[int, Shape] = {}


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (Drawing(shapes=[Shape(name="a"), Circle(name="b", radius=1)]), "shapes.1.radius"),
        ([{"drawing": Drawing(points={"a": Point3(1, 2)})}], "0.drawing.points.a.z"),
        (Drawing(anything=(Drawing(shapes=[Circle(name="b", radius=1)]),)), "anything.0.shapes.0.radius"),
        (Drawing(shapes=[Open.model_validate({"name": "a", "more": 1})]), "shapes.0.more"),
        (Squares(square=ColouredSquare(name="a", side=2)), "square.colour"),
        (
            Squares(square=Square(name="a", side=1), by_number={1: Circle(name="b", radius=1)}),
            "by_number.1.radius",
        ),
        (RootModel[list[Shape]]([Circle(name="b", radius=1)]), "0.radius"),
    ],
)
def test_fields_of_a_nested_subclass_are_not_dropped_of_an_untyped_payload(
    payload: object, field: str
) -> None:
    with pytest.raises(PayloadValidationError, match=f"its field {re.escape(field)} is one of a subclass"):
        PayloadSchemas(None).to_json(None, payload)


def test_untyped_payload_is_written_as_its_serializers_decide() -> None:
    class Named(BaseModel):
        shape: Annotated[Shape, PlainSerializer(lambda shape: {"called": shape.name})]
        radius: Annotated[Circle, PlainSerializer(lambda circle: {"radius": circle.radius})]
        square: Square
        note: str = Field(default="none", exclude=True)

    circle = Circle(name="b", radius=1)
    named = Named(shape=circle, radius=circle, square=Square(name="s", side=2))
    assert PayloadSchemas(None).from_json(None, PayloadSchemas(None).to_json(None, [named, circle])) == [
        {"shape": {"called": "b"}, "radius": {"radius": 1}, "square": {"name": "s", "side": 2, "area": 4}},
        {"name": "b", "radius": 1},
    ]


@pytest.mark.parametrize(("payload", "key"), [({1: "a", "1": "b"}, "1"), ({None: 1, "None": 2}, "None")])
def test_keys_that_are_one_in_json_are_refused(payload: dict[object, object], key: str) -> None:
    for schemas in (
        PayloadSchemas(None),
        PayloadSchemas({"a": dict[int | str | None, Any], "draw": Drawing}),
    ):
        with pytest.raises(
            PayloadValidationError, match=f"more than one key of a dict is written as '{key}'"
        ):
            schemas.to_json("a", payload)
        with pytest.raises(PayloadValidationError, match="more than one key"):
            schemas.to_json("draw", Drawing(anything=[payload]))
    assert PayloadSchemas(None).to_json("a", {1: "a", "2": "b"}) == b'{"1":"a","2":"b"}'


def test_client_shows_its_registry_and_nobody_changes_it_there() -> None:
    given: dict[str, Any] = {"email:send": SendEmail}
    client = OsqueueClient("http://127.0.0.1:1", registry=given)
    with SyncOsqueueClient("http://127.0.0.1:1", registry=given) as sync:
        assert client.registry == sync.registry == {"email:send": SendEmail}
    given["measure"] = Measure
    assert client.registry == {"email:send": SendEmail}
    assert OsqueueClient("http://127.0.0.1:1").registry is None
    with pytest.raises(TypeError):
        cast("dict[str, Any]", client.registry)["measure"] = Measure


def test_subclass_that_adds_nothing_to_be_written_is_taken() -> None:
    class Cached(Shape):
        cache: str = Field(default="empty", exclude=True)

    assert (
        PayloadSchemas({"shape": Shape}).to_json("shape", Cached(name="a", cache="full")) == b'{"name":"a"}'
    )


def test_subclass_that_its_model_knows_comes_back() -> None:
    class Known(BaseModel):
        shape: Circle | Open

    schemas = PayloadSchemas({"known": Known})
    for shape in (Circle(name="a", radius=1), Open.model_validate({"name": "a", "more": [1]})):
        payload = Known(shape=shape)
        assert schemas.from_json("known", schemas.to_json("known", payload)) == payload


def test_value_that_is_read_back_as_another_is_refused() -> None:
    class Rounded(BaseModel):
        value: Annotated[int, PlainValidator(lambda value: int(value) + 1)]

    with pytest.raises(PayloadValidationError, match="read back as another value"):
        PayloadSchemas({"rounded": Rounded}).to_json("rounded", {"value": 1})


class Opaque:
    """Equal to itself only."""

    def __init__(self, value: int) -> None:
        self.value = value


def test_what_json_carries_in_another_shape_is_not_refused() -> None:
    class Odd(BaseModel):
        numbers: set[int] = set()
        # Never equal to the same moment in another zone: it is in the hour that comes twice.
        at: datetime = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
        opaque: Annotated[
            Any,
            PlainValidator(lambda value: value if isinstance(value, Opaque) else Opaque(value)),
            PlainSerializer(lambda opaque: opaque.value),
        ] = Opaque(1)
        anything: Any = (1, datetime(2026, 1, 1))

    odd = Odd(numbers=set(range(1000)))
    for number in set(range(1000)) - {9, 16}:
        odd.numbers.discard(number)
    assert list(odd.numbers) != list({9, 16})  # a set that was large comes in another order
    schemas = PayloadSchemas({"odd": Odd})
    assert schemas.from_json("odd", schemas.to_json("odd", odd))


def test_excluded_field_is_left_out_as_its_model_says() -> None:
    class Cached(BaseModel):
        value: int
        cache: str = Field(default="empty", exclude=True)

    schemas = PayloadSchemas({"cached": Cached})
    assert schemas.to_json("cached", Cached(value=1, cache="full")) == b'{"value":1}'


def test_model_with_a_computed_field_or_a_field_of_json_text_can_be_submitted() -> None:
    class Square(BaseModel, extra="forbid"):
        width: int

        @computed_field  # type: ignore[prop-decorator]  # as pydantic has it
        @property
        def area(self) -> int:
            return self.width**2

    class Enveloped(BaseModel):
        numbers: Json[list[int]]

    schemas = PayloadSchemas({"square": Square, "enveloped": Enveloped})
    assert schemas.to_json("square", {"width": 3}) == b'{"width":3}'
    text = schemas.to_json("enveloped", {"numbers": "[1,2]"})
    assert schemas.from_json("enveloped", text) == Enveloped.model_validate({"numbers": "[1,2]"})


@pytest.mark.parametrize(
    "payload",
    [{"n": 10**5000}, {"text": "\ud800"}, {"\ud800": 1}, deque([math.nan]), SecretStr("x"), {"a": math.inf}],
    ids=["digits", "surrogate", "surrogate name", "nan", "secret", "infinity"],
)
def test_untyped_payload_that_no_worker_could_read_is_refused(payload: object) -> None:
    with pytest.raises(PayloadValidationError, match="cannot be sent as JSON"):
        PayloadSchemas(None).to_json("any", payload)


@pytest.mark.parametrize(
    "text",
    [
        b"[1e400]",
        b"[-1e0400]",
        b"[" + b"9" * 290 + b"e99]",
        b"[NaN]",
        b"[" + b"9" * 5000 + b"]",
        b'["\\ud800"]',
    ],
    ids=lambda text: text[:9].decode(),
)
def test_number_or_text_that_python_cannot_hold_is_an_error_for_the_worker(text: bytes) -> None:
    for model in (None, list[float | str], list[Any]):
        with pytest.raises(PayloadValidationError):
            PayloadSchemas(None).from_json("any", text, model)


def test_long_number_that_python_can_hold_is_read() -> None:
    text = b"[%d]" % 10**400
    for model in (None, list[int]):
        assert PayloadSchemas(None).from_json("any", text, model) == [10**400]


def test_job_type_that_is_not_in_the_registry_is_refused() -> None:
    with pytest.raises(PayloadValidationError, match="no job type 'email:sent' in the registry"):
        SCHEMAS.to_json(JobType("email:sent", SendEmail), SendEmail(to="a"))
    with pytest.raises(
        PayloadValidationError, match="another model for 'email:send' than this JobType"
    ) as caught:
        SCHEMAS.to_json(JobType("email:send", Measure), Measure())
    assert caught.value.job_type == "email:send"
    numbers = PayloadSchemas({"numbers": list[int]})
    assert numbers.to_json(JobType("numbers", list[int]), [1]) == b"[1]"
    assert PayloadSchemas(None).to_json(JobType("email:sent", SendEmail), SendEmail(to="a"))


def test_job_type_without_a_name_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="a JobType needs a name"):
        JobType("", SendEmail)


def test_repr_of_a_job_leaves_its_payload_out() -> None:
    job = Job("1", "email:send", b'{"to":"hunter2"}', 1, "t0ken", SCHEMAS)
    assert repr(job) == "Job(id='1', type='email:send', attempt=1)"
    assert job.payload_as(SendEmail).to == "hunter2"
