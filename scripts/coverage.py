#!/usr/bin/env python3
"""Which outcomes of the conditions in the BPF sources the packet tests see: scripts/coverage.py [TEST FILTER...]

Builds the programs with a mark at both outcomes of every condition (of each operand of && and ||, too) and at
every case, lets the tests of single packets run on them, without the random ones, and says what was never
reached. The templates count once for each family. Needs root, as the tests do, clang-19 and cargo.

What no packet can reach is explained in kubenet-ebpf/bpf/coverage.txt. What explains nothing there is an error.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kubenet-ebpf/bpf"
EXPLAINED = SOURCES / "coverage.txt"
# Called instead of inlined, as the stack has not the room for the marks otherwise.
CALLED = re.compile(r"static __always_inline (int\s+F\((ingress|egress)\)\()")
PAIRS = {"(": ")", "[": "]", "{": "}"}

HEADER = r"""
unsigned char coverage[%d] __attribute__((section(".bss.coverage"), used));
/* No base address is kept for later: the stack has not the room. */
#define COV_HIT(n) \
	({ asm volatile("r0 = coverage ll\n\t*(u8 *)(r0 + %%0) = 1" :: "i"(n) : "r0"); })
#define COV(n, ...) ((__VA_ARGS__) ? (COV_HIT((n) + 1), 1) : (COV_HIT(n), 0))
#define COV_VALUE(n, ...) \
	({ typeof((__VA_ARGS__) + 0) v = (__VA_ARGS__); if (v) COV_HIT((n) + 1); else COV_HIT(n); v; })
"""

# One outcome: of the condition (or case) `text` in a line of a file, at a slot of the array.
Outcome = namedtuple("Outcome", "file line text outcome family slot")


class Marker:
    """Writes marks into one source."""

    def __init__(self, name, text, slots):
        self.name, self.text, self.slots = name, text, slots
        self.families = (4, 6) if name.endswith("_tmpl.h") else (0,)
        self.outcomes, self.insertions = [], []
        self.code = self.masked()
        self.region(0, len(text))

    def masked(self):
        """The text with everything blank that is no code."""
        blank = lambda match: re.sub(r"[^\n]", " ", match.group())
        text = re.sub(r"/\*.*?\*/|//[^\n]*|\"(\\.|[^\"\\])*\"|'(\\.|[^'\\])*'", blank, self.text, flags=re.S)
        return re.sub(r"^[ \t]*#(\\\n|[^\n])*", blank, text, flags=re.M)

    def matching(self, at):
        depth = 0
        for i in range(at, len(self.code)):
            if self.code[i] in PAIRS:
                depth += 1
            elif self.code[i] in PAIRS.values():
                depth -= 1
                if not depth:
                    return i
        raise SystemExit(f"{self.name}: a bracket is not closed")

    def split(self, lo, hi, separator):
        """Pieces between what matches, outside of brackets."""
        pieces, at, begin = [], lo, lo
        while at < hi:
            if self.code[at] in PAIRS:
                at = self.matching(at) + 1
                continue
            match = separator.match(self.code, at, hi)
            if match:
                pieces.append((begin, at))
                begin = at = match.end()
            else:
                at += 1
        return pieces + [(begin, hi)]

    def mark(self, lo, hi, outcomes):
        """A new slot for each outcome and family; the expression of the first one's index."""
        line = self.text.count("\n", 0, lo) + 1
        text = " ".join(self.text[lo:hi].split())
        first = len(self.slots)
        for family in self.families:
            for outcome in outcomes:
                self.outcomes.append(Outcome(self.name, line, text, outcome, family, len(self.slots)))
                self.slots.append(None)
        step = f" + {len(outcomes)} * (FAMILY == 6)" if self.families != (0,) else ""
        return f"{first}{step}"

    def strip(self, lo, hi):
        while lo < hi and self.code[lo].isspace():
            lo += 1
        while lo < hi and self.code[hi - 1].isspace():
            hi -= 1
        return lo, hi

    def nested(self, lo, hi):
        at = lo
        while at < hi:
            if self.code[at] in PAIRS:
                end = self.matching(at)
                self.region(at + 1, end)
                at = end
            at += 1

    def condition(self, lo, hi, value=False):
        lo, hi = self.strip(lo, hi)
        for operator in (r"\|\|", "&&"):
            pieces = self.split(lo, hi, re.compile(operator))
            if len(pieces) > 1:
                for piece in pieces:
                    self.condition(*piece)
                return
        inner = lo + 1 if self.code[lo] == "!" else lo
        if self.code[inner] == "(" and self.matching(inner) == hi - 1:
            if len(self.split(inner + 1, hi - 1, re.compile(r"\|\||&&|\?"))) > 1:
                return self.condition(inner + 1, hi - 1)
        if len(self.split(lo, hi, re.compile(r"\?"))) > 1:
            return self.expression(lo, hi)
        index = self.mark(lo, hi, ("false", "true"))
        self.insertions.append((lo, f"COV{'_VALUE' if value else ''}({index}, "))
        self.nested(lo, hi)
        self.insertions.append((hi, ")"))

    def expression(self, lo, hi):
        pieces = self.split(lo, hi, re.compile(r"\?"))
        if len(pieces) > 1:
            first = pieces[0]
            self.condition(*first, value=self.code[first[1] + 1:].lstrip().startswith(":"))
            for piece in self.split(first[1] + 1, hi, re.compile(":")):
                self.expression(*piece)
        elif len(self.split(lo, hi, re.compile(r"\|\||&&"))) > 1:
            self.condition(lo, hi)
        else:
            self.nested(lo, hi)

    def region(self, lo, hi):
        """Statements, or expressions with commas between."""
        keyword = re.compile(r"\b(if|while|switch|for|case|default|return|else|do|goto)\b")
        end = re.compile(r"[;,]|(?<![=!<>])=(?!=)|(?<=<<)=|(?<=>>)=")
        at = begin = lo
        while at < hi:
            match = keyword.match(self.code, at, hi)
            if match:
                self.expression(begin, at)
                at = begin = self.statement(match, hi)
            elif self.code[at] == "{":
                self.expression(begin, at)
                close = self.matching(at)
                self.region(at + 1, close)
                at = begin = close + 1
            elif self.code[at] in PAIRS:
                at = self.matching(at) + 1
            elif end.match(self.code, at, hi):
                self.expression(begin, at)
                at = begin = at + 1
            else:
                at += 1
        self.expression(begin, hi)

    def statement(self, match, hi):
        """Marks what a keyword governs, and says where it goes on."""
        word, at = match.group(), match.end()
        if word in ("if", "while", "switch", "for"):
            open_at = self.code.index("(", at)
            close = self.matching(open_at)
            if word in ("if", "while"):
                self.condition(open_at + 1, close)
            elif word == "switch":
                self.region(open_at + 1, close)
                body = self.code.index("{", close)
                if not re.search(r"\bdefault\b", self.code[body:self.matching(body)]):
                    index = self.mark(match.start(), close + 1, ("none of the cases",))
                    self.insertions.append((body + 1, f" default: COV_HIT({index}); break; "))
            # All bounds of loops are constant.
            return close + 1
        if word in ("case", "default"):
            colon = self.code.index(":", at)
            # Of labels in a row, the last.
            if not re.match(r"\s*(case|default)\b", self.code[colon + 1:]):
                index = self.mark(match.start(), colon, ("reached",))
                self.insertions.append((colon + 1, f" COV_HIT({index});"))
            return colon + 1
        return at

    def marked(self):
        parts, at = [], 0
        for position, text in sorted(self.insertions, key=lambda insertion: insertion[0]):
            parts += [self.text[at:position], text]
            at = position
        return "".join(parts + [self.text[at:]])


def build(directory):
    """Builds the object with marks. Returns its path, all outcomes, and the number of slots."""
    slots, outcomes = [], []
    target = directory / "bpf"
    shutil.copytree(SOURCES, target)
    for path in sorted(target.glob("*.[ch]")):
        marker = Marker(path.name, path.read_text(), slots)
        path.write_text(CALLED.sub(r"static __noinline \1", marker.marked()))
        outcomes += marker.outcomes
    (target / "coverage.h").write_text(HEADER % len(slots))
    script = (target / "build.sh").read_text()
    flags = "-Wall -Wextra -Werror"
    assert flags in script, "build.sh has other flags"
    (target / "build.sh").write_text(script.replace(flags, "-w -include coverage.h"))
    output = directory / "kubenet.bpf.o"
    subprocess.run([target / "build.sh", output], check=True)
    return output, outcomes, len(slots)


class Collector(threading.Thread):
    """Keeps every map with marks, so that it can be read when its owner is gone."""

    NUMBERS = {"x86_64": 321, "aarch64": 280}
    GET_NEXT_ID, GET_FD_BY_ID, LOOKUP, GET_INFO = 12, 14, 1, 15

    def __init__(self, size):
        super().__init__(daemon=True)
        self.size, self.seen, self.fds = size, set(), []
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.done = threading.Event()

    def bpf(self, command, *words):
        attributes = (ctypes.c_uint32 * 32)(*words)
        result = self.libc.syscall(self.NUMBERS[platform.machine()], command, attributes, ctypes.sizeof(attributes))
        return result, attributes

    @staticmethod
    def halves(buffer):
        address = ctypes.addressof(buffer)
        return address & 0xFFFFFFFF, address >> 32

    def run(self):
        while not self.done.wait(0.05):
            self.look()

    def look(self):
        number, alive = 0, set()
        while True:
            result, attributes = self.bpf(self.GET_NEXT_ID, number)
            if result < 0:
                break
            number = attributes[1]
            alive.add(number)
            if number not in self.seen:
                fd, _ = self.bpf(self.GET_FD_BY_ID, number)
                if fd >= 0 and self.is_marks(fd):
                    self.fds.append(fd)
                elif fd >= 0:
                    os.close(fd)
        self.seen = alive

    def is_marks(self, fd):
        # struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name.
        info = (ctypes.c_uint8 * 88)()
        self.bpf(self.GET_INFO, fd, len(info), *self.halves(info))
        name = bytes(info[24:40]).split(b"\0")[0]
        value_size = int.from_bytes(bytes(info[12:16]), sys.byteorder)
        return name.startswith(b".bss.cov") and value_size == self.size

    def reached(self):
        every = bytearray(self.size)
        key, value = ctypes.c_uint32(0), (ctypes.c_uint8 * self.size)()
        for fd in self.fds:
            result, _ = self.bpf(self.LOOKUP, fd, 0, *self.halves(key), *self.halves(value))
            assert result == 0, os.strerror(ctypes.get_errno())
            for slot, mark in enumerate(value):
                every[slot] |= mark
        return every


class Reason:
    """A line of coverage.txt: source :: outcome :: condition :: why, the first three as regular expressions.

    The source may be followed by the family, as in `rewrite_tmpl\\.h IPv4`.
    """

    def __init__(self, line):
        *patterns, self.why = line.split(" :: ")
        if len(patterns) != 3:
            sys.exit(f"coverage.txt: source :: outcome :: condition :: why, and not: {line}")
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.line, self.used = line, False

    def explains(self, outcome):
        source, *others = self.patterns
        parts = zip(others, (outcome.outcome, outcome.text), strict=True)
        names = (outcome.file, f"{outcome.file} IPv{outcome.family}")
        found = any(map(source.fullmatch, names)) and all(pattern.fullmatch(part) for pattern, part in parts)
        self.used |= found
        return found


def explained():
    lines = EXPLAINED.read_text().splitlines()
    return [Reason(line) for line in lines if line and not line.startswith("#")]


def run(filters):
    """Runs the tests on marked programs. Returns all outcomes, and those that were reached."""
    with tempfile.TemporaryDirectory(prefix="kubenet-coverage-") as directory:
        output, outcomes, size = build(Path(directory))
        collector = Collector(size)
        collector.start()
        skipped = [] if filters else ["--skip", "fuzz::"]
        # It would not like the marks.
        skipped += ["--skip", "size::the_programs_stay_far"]
        tests = subprocess.run(
            ["cargo", "test", "-q", "-p", "kubenet-ebpf", "--test", "packets", "--", *filters, *skipped],
            cwd=ROOT, env={**os.environ, "KUBENET_BPF_OBJECT": str(output)})
        if tests.returncode:
            sys.exit("coverage.py: tests fail on the marked programs: what they reached says nothing")
        collector.done.set()
        collector.join()
        print(f"{len(collector.fds)} times loaded")
        if not collector.fds:
            sys.exit("coverage.py: no marks were found: were all tests skipped?")
        reached = collector.reached()
        return outcomes, {outcome for outcome in outcomes if reached[outcome.slot]}


def report(reasons, outcomes, reached, partial):
    total, taken, named, missing = Counter(), Counter(), Counter(), []
    for outcome in outcomes:
        total[outcome.file] += 1
        if outcome in reached:
            taken[outcome.file] += 1
        elif any([reason.explains(outcome) for reason in reasons]):
            named[outcome.file] += 1
        else:
            missing.append(outcome)
    print(f"\n{'source':24} outcomes reached explained  left")
    for file in [*sorted(total), "all"]:
        numbers = [count.total() if file == "all" else count[file] for count in (total, taken, named)]
        left = numbers[0] - numbers[1] - numbers[2]
        percent = 100 * numbers[1] / max(1, numbers[0])
        print(f"{file:24} {numbers[0]:8} {numbers[1]:7} {numbers[2]:9} {left:5}  {percent:5.1f}%")
    print("\nNever reached, and not explained:")
    for outcome in missing:
        family = f" IPv{outcome.family}" if outcome.family else ""
        print(f"{outcome.file}:{outcome.line}:{family} {outcome.outcome}: {outcome.text}")
    unused = [reason.line for reason in reasons if not reason.used]
    if unused and not partial:
        sys.exit("\n".join(["coverage.txt explains what was reached, or is not there:", *unused]))


if os.geteuid():
    sys.exit("coverage.py: loading BPF programs needs root")
report(explained(), *run(sys.argv[1:]), partial=len(sys.argv) > 1)
