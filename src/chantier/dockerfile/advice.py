# SPDX-License-Identifier: Apache-2.0
"""What to do about an error in a Dockerfile: one line for each text a person may meet.

Texts are stock texts and stay so; the advice stands beside them, in an error's `hint`.
"""

from __future__ import annotations

from typing import Final

from chantier.errors import DockerfileError

from .names import INSTRUCTIONS

_ADVICE: Final = (
    ("the Dockerfile cannot be empty", "start with FROM: the image to build on, or scratch"),
    ("file with no instructions", "every line is a comment or blank; start with FROM"),
    ("dockerfile contains no stages to build", "add a FROM line: the image to build on, or scratch"),
    ("no build stage in current context", "the first instruction must be FROM; only ARG may stand before it"),
    ("dockerfile line greater than", "move long data to a file and COPY it, or break the line with the escape token"),
    ("only one ", "remove the repeated directive"),
    ("invalid escape token", "write `# escape=\\` or `# escape=` and a backquote"),
    ("unknown instruction", f"known are {', '.join(INSTRUCTIONS)}; a line that continues another needs a \\ before it"),
    ("duplicate flag specified", "give the flag once"),
    ("missing a value on flag", "write --flag=value, without blanks around ="),
    ("expecting boolean value", "write true or false, or the flag alone"),
    ("Syntax error - can't find =", 'put values with blanks in double quotes, and comments on their own line: KEY="a b"'),
    ("ENV must have two arguments", "write ENV KEY=value"),
    ("LABEL must have two arguments", "write LABEL KEY=value"),
    ("names can not be blank", "write a name before ="),
    ("when using JSON array syntax", 'put every element in double quotes: ["a", "1"]'),
    ("SHELL requires the arguments", 'write SHELL ["/bin/bash", "-c"]'),
    ("requires at least two arguments", "give one or more sources and a destination"),
    ("requires exactly one argument", "give the value after the instruction"),
    ("requires at least one argument", "give a value after the instruction"),
    ("FROM requires either one or three", "write FROM image, or FROM image AS name"),
    ("invalid name for build stage", "begin with a letter, then letters, digits, `-`, `_` and `.`"),
    ("unterminated heredoc", "the body ends at a line that holds the delimiter and nothing else, no blanks either"),
    ("cannot accept a heredoc as", "put the destination after the heredoc: COPY <<EOF /path"),
    ("Chaining ONBUILD", "write one ONBUILD before the instruction"),
    ("isn't allowed as an ONBUILD", "use another instruction as the trigger"),
    ("HEALTHCHECK NONE takes", "write HEALTHCHECK NONE alone"),
    ("Unknown type", "write HEALTHCHECK CMD command, or HEALTHCHECK NONE"),
    ("Missing command after", "write the command after HEALTHCHECK CMD"),
    ("Interval ", "give 1ms or more, or 0 for the default"),
    ("time: ", "write a duration such as 30s, 1m30s or 500ms"),
    ("strconv.ParseInt", "write a whole number"),
    ("--retries cannot be negative", "write 0 or more; 0 is the default"),
    ("VOLUME specified", "give a path"),
    ("invalid network mode", "use default, none or host"),
    ("security ", "use sandbox or insecure"),
    ("'from' doesn't support", "write FROM image AS name above, with the variable there, and mount from=name"),
    ("device name already set", "name one device for each --device"),
    ("failed to parse csv", "separate options by commas; an option with a comma in it stands in double quotes"),
    ("invalid field", "write key=value"),
    ("invalid check option", "use skip=, experimental= and error=, separated by ;"),
)


def advise(error: DockerfileError, brief: str = "") -> DockerfileError:
    """Give the error its hint unless it has one; `brief` is the text to look up where it differs from the error's."""
    text = brief or error.brief
    if error.hint is None:
        error.hint = next((advice for part, advice in _ADVICE if part in text), None)
    return error


__all__ = ["advise"]
