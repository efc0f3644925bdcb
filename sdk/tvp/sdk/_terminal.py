"""What TVP's commands print: never a character that steers a terminal.

Answers, labels, names of tasks and of files may be a stranger's. An escape sequence among them could set the clipboard,
the window's title, or hide a line. So the streams themselves escape, whoever writes to them: a command, a log message,
an error of click.
"""

from __future__ import annotations

import codecs
import io
import re
import sys

# Control characters but tab and line end; those that change the direction of text or break lines; halves of a pair.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return a text with an escape such as \\x1b in place of each character that steers a terminal."""
    return STEERING.sub(lambda match: ascii(match[0])[1:-1], text)


class EscapingStream(io.TextIOWrapper):
    """A text stream that escapes what it writes. A carriage return that begins a text stays: progress bars need it."""

    def write(self, text: str, /) -> int:
        begin = "\r" if text.startswith("\r") else ""
        super().write(begin + escaped(text[len(begin) :]))
        return len(text)


def escape_streams() -> None:
    """Let stdout and stderr of this process escape. Characters that their encoding lacks are escaped too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, EscapingStream):
            stream.flush()
            # click writes UTF-8 where Python found ASCII, and it would write past this stream.
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            escaping = EscapingStream(
                stream.buffer, "utf-8" if ascii_only else stream.encoding, "backslashreplace",
                line_buffering=stream.line_buffering, write_through=stream.write_through,
            )  # fmt: skip
            setattr(sys, name, escaping)
