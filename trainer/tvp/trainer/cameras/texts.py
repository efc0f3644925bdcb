"""Cameras in words, as the command line and TOML files write them."""

from __future__ import annotations

from tvp.sdk.errors import RequestError, near

from .camera import NONE, Camera, Part, form, wrong_severity
from .kinds import KINDS, SEVERITIES, Number

HELP = (
    "KIND:SEVERITY or KIND=VALUE, with a comma between parts, such as fog:4 or gain=0.2..1,noise=0.05; none for clean "
    "pictures. `tvp camera --list` says all. Default: the task's own camera."
)
CORRUPTIONS = ("noise", "blur", "contrast", "jpeg", "fog")  # what `all` stands for when models are compared


def parse(text: str) -> Camera:
    """Read a camera: parts with a comma between them, in the order in which they spoil the picture.

    A part is `KIND:SEVERITY` or `KIND=VALUE`; where it has several values, `KIND=VALUE/VALUE`. A severity or a value
    may be a range, `LOW..HIGH`, from which each picture has its own draw. A name of NAMED stands for its parts.

    Raises:
        RequestError: the text is no camera; the message says which part, and has near matches.
    """
    parts: list[Part] = []
    for item in text.split(","):
        name = item.strip()
        found = min((i for i in map(name.find, ":=") if i >= 0), default=len(name))
        kind, sign, rest = name[:found].strip(), name[found : found + 1], name[found + 1 :].strip()
        if not kind:
            raise RequestError(
                f"The camera {text!r} has an empty part. Write parts with a comma between them, such as "
                "gain=0.32,noise=0.04 or fog:4."
            )
        if kind in NAMED:
            if sign:
                raise RequestError(f"{kind} is a whole camera, {NAMED[kind]}, so {name!r} says too much. Write {kind}.")
            parts += NAMED[kind].parts
            continue
        if kind not in KINDS:
            raise RequestError(
                f"There is no camera part {kind!r}. There are {', '.join(KINDS)}; whole cameras are "
                f"{', '.join(NAMED)}.{near(kind, [*KINDS, *NAMED])}"
            )
        if sign == "=":
            parts.append(Part(kind, values=tuple(_number(kind, word) for word in rest.split("/"))))
        elif sign == ":":
            parts.append(Part(kind, severity=_severity(kind, rest)))
        else:
            raise RequestError(f"{kind} needs a severity, such as {kind}:3, or values. {form(kind)}")
    return Camera(tuple(parts))


def parse_columns(text: str) -> list[Camera]:
    """Read a camera; the name of a kind alone stands for five cameras, one at each severity."""
    if text.strip() in KINDS:
        return [Camera((Part(text.strip(), severity=severity),)) for severity in SEVERITIES]
    return [parse(text)]


def parse_corruption(text: str) -> list[tuple[str, int]]:
    """Read `KIND` (every severity), `KIND:SEVERITY`, `all` (of CORRUPTIONS) or `all:SEVERITY` as kinds and severities.

    Raises:
        RequestError: there is no such kind or severity; the message has near matches.
    """
    name, colon, severity = text.partition(":")
    if name not in (*KINDS, "all"):
        raise RequestError(
            f"There is no corruption {name!r}. There are {', '.join(KINDS)}, and all.{near(name, [*KINDS, 'all'])}"
        )
    if colon and severity not in map(str, SEVERITIES):
        raise RequestError(f"The severity {severity!r} of {name} is unknown. It is a whole number from 1 to 5.")
    names = CORRUPTIONS if name == "all" else (name,)
    return [(one, step) for one in names for step in ((int(severity),) if colon else SEVERITIES)]


def _number(kind: str, word: str) -> Number:
    try:
        ends = [float(end) for end in word.split("..")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise RequestError(f"{kind} has {word.strip()!r} as a value. {form(kind)}")
    return ends[0] if len(ends) == 1 else (ends[0], ends[1])


def _severity(kind: str, word: str) -> int | tuple[int, int]:
    ends = [end.strip() for end in word.split("..")]
    if len(ends) > 2 or not all(end in map(str, SEVERITIES) for end in ends):
        raise wrong_severity(kind, word)
    return int(ends[0]) if len(ends) == 1 else (int(ends[0]), int(ends[1]))


NAMED: dict[str, Camera] = {NONE: Camera()}
NAMED["bad"] = parse("gain=0.32,cast=1/0.62/0.38,noise=0.04")  # a third of the light, a tint of orange, noise
NAMED["half-bad"] = parse("gain=0.5,cast=1/0.8/0.6,noise=0.02")
