# SPDX-License-Identifier: Apache-2.0
"""What a Dockerfile says, as frozen values: one class an instruction, Stage, Program.

Nothing here is expanded: every string is as written in the file, after continuation lines were joined. Where a
word of the file still holds quotes and escapes (so that expansion can see them), the field's comment says `raw`;
give it to `shell.Lex.process_word`. The rest is final text.
"""

from __future__ import annotations

from typing import TypeAlias

from chantier.errors import Source, SourceRange
from chantier.values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """One `<<NAME` document of a RUN, COPY or ADD."""

    name: str  # the terminator, quotes removed; the file name of a COPY heredoc
    content: str  # the body with its line endings, leading tabs still there even for `<<-`
    expand: bool = True  # False when the word carried quotes: the body is then taken as it is
    chomp: bool = False  # `<<-`: use heredoc.chomp(content)
    fd: int = 0  # the number before `<<`; kept for text only

    @property
    def text(self) -> str:
        """The content with leading tabs gone when the word was `<<-`."""
        if not self.chomp:
            return self.content
        return "\n".join(line.lstrip("\t") for line in self.content.split("\n"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One pair of ENV or LABEL."""

    key: str  # raw
    value: str  # raw
    no_delim: bool = False  # written `KEY value` (rule LegacyKeyValueFormat)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgPair:
    """One name of ARG with its default, if it has one."""

    key: str  # raw; never expanded inside a stage
    value: str | None = None  # raw default; None when written without `=`
    doc: str = ""  # description from a comment line `# KEY text` above the instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction carries."""

    name: str  # lower case: "run", "copy", ...
    keyword: str  # as written: "RUN", "Run"
    code: str  # the whole logical line as written, continuation lines joined, trimmed, without heredoc bodies
    start: int  # first physical line, 1-based
    end: int  # last physical line (of the last heredoc's terminator if it has heredocs)
    flags: tuple[str, ...] = ()  # the builder flags as written, `--from=x`, quotes removed
    comments: tuple[str, ...] = ()  # comment lines directly above, `#` and blanks around removed
    on_build: bool = False  # True for an instruction parsed out of a base image's trigger (parser.parse_trigger)

    @property
    def ranges(self) -> tuple[SourceRange, ...]:
        """One range a physical line, as the lint results and error details carry them."""
        return tuple(SourceRange(n, n) for n in range(self.start, max(self.start, self.end) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    pairs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    pairs: tuple[KeyValue, ...]
    no_expand: bool = False  # for labels that come from build options; the parser never sets it


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    maintainer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    args: tuple[ArgPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Instruction):
    sources: tuple[str, ...]  # raw; paths, URLs, git references; heredoc words are not among them
    contents: tuple[Heredoc, ...]  # in order of their words; destination file name is Heredoc.name
    dest: str  # raw
    chown: str = ""  # raw
    chmod: str = ""  # raw
    checksum: str = ""  # raw
    link: bool = False
    exclude: tuple[str, ...] = ()  # final
    keep_git_dir: bool | None = None  # None: the flag was not given
    unpack: bool | None = None  # None: the flag was not given


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    sources: tuple[str, ...]  # raw; heredoc words are not among them
    contents: tuple[Heredoc, ...]
    dest: str  # raw
    from_: str = ""  # final: a stage index, a stage name, a named context or an image
    chown: str = ""  # raw
    chmod: str = ""  # raw
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()  # final


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBuild(Instruction):
    expression: str  # the trigger text to store: original words, heredoc bodies appended


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    path: str  # raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """RUN. `network` and `security` are validated; mounts are read late: `mounts.parse_mounts(run, expand)`."""

    command: tuple[str, ...]  # exec form: the words; shell form: one string (no word at all for an empty RUN)
    shell_form: bool  # True: put SHELL in front
    heredocs: tuple[Heredoc, ...] = ()  # only with shell_form; `heredoc.parse_word(command[0])` tells the `RUN <<EOF` case
    mounts: tuple[str, ...] = ()  # raw CSV texts of --mount, in order
    network: str = "default"  # default, none, host
    security: str = "sandbox"  # sandbox, insecure
    devices: tuple[Device, ...] = ()  # --device, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One RUN --device."""

    name: str
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Instruction):
    command: tuple[str, ...]  # exec form: the words (may be none); shell form: one string
    shell_form: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Instruction):
    command: tuple[str, ...]  # as Cmd; `ENTRYPOINT []` has no words and stands for null
    shell_form: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """HEALTHCHECK. Durations are nanoseconds, 0 where not given."""

    test: tuple[str, ...]  # ("NONE",), ("CMD-SHELL", text) or ("CMD", word, ...), as the image config stores it
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    ports: tuple[str, ...]  # raw words, sorted; expand, split again (Lex.process_words), then ports.parse_port


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    user: str  # raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    volumes: tuple[str, ...]  # raw


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal(Instruction):
    signal: str  # raw; validate after expansion with names.check_signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    shell: tuple[str, ...]


Command: TypeAlias = (
    Add
    | Arg
    | Cmd
    | Copy
    | Entrypoint
    | Env
    | Expose
    | Healthcheck
    | Label
    | Maintainer
    | OnBuild
    | Run
    | Shell
    | StopSignal
    | User
    | Volume
    | Workdir
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Instruction):
    """A FROM and what follows it. The Instruction fields are those of the FROM line."""

    stage_name: str = ""  # lower-cased name after AS; "" when unnamed
    original_name: str = ""  # the name as written
    base_name: str  # raw: image, stage name, or scratch
    platform: str = ""  # raw --platform
    doc: str = ""  # description from a comment line `# name text` above
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One parser directive at the top of the file."""

    name: str  # syntax, escape or check
    value: str
    line: int

    @property
    def ranges(self) -> tuple[SourceRange, ...]:
        return (SourceRange(self.line, self.line),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One parsed Dockerfile."""

    filename: str
    data: bytes = field(repr=False)  # the bytes given, for source excerpts
    escape: str = "\\"  # the escape token
    directives: tuple[Directive, ...] = ()
    meta_args: tuple[Arg, ...] = ()  # ARG lines before the first FROM
    stages: tuple[Stage, ...] = ()
    empty_continuations: tuple[int, ...] = ()  # lines at which a blank line inside a continuation was seen

    def source(self, *ranges: SourceRange) -> Source:
        """The place to attach to an error: `raise DockerfileError(...).at(program.source(*command.ranges))`."""
        return Source(self.filename, self.data, ranges)


__all__ = [
    "Add",
    "Arg",
    "ArgPair",
    "Cmd",
    "Command",
    "Copy",
    "Device",
    "Directive",
    "Entrypoint",
    "Env",
    "Expose",
    "Healthcheck",
    "Heredoc",
    "Instruction",
    "KeyValue",
    "Label",
    "Maintainer",
    "OnBuild",
    "Program",
    "Run",
    "Shell",
    "Stage",
    "StopSignal",
    "User",
    "Volume",
    "Workdir",
]
