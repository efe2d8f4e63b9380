#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# tools/lint_faults.py - each test that the table of faults in docs/TESTING.md names exists; prints
# those that do not as file:line: what, and fails. For tools/lint. In a cell, `NAME` behind "SUITE:"
# is a case of test_SUITE.c, test_daemon_SUITE.c or test_SUITE.sh; alone it is a suite, a fuzz
# target, or a path; behind "fault_sweep:" a fault that larder-fault-sweep makes.
import pathlib
import re
import sys

TABLE = pathlib.Path("docs/TESTING.md")
SWEEP = pathlib.Path("tests/crashing/fault_sweep.c")


def files_of(suite):
    if suite == "fault_sweep":
        return [SWEEP]
    names = (f"test_{suite}.c", f"test_daemon_{suite}.c", f"test_{suite}.sh")
    return [file for name in names for file in pathlib.Path("tests").glob(f"*/{name}")]


def exists(suite, name):
    if suite is None:
        return bool(files_of(name)) or any(pathlib.Path("tests").glob(f"*/{name}.c"))
    for file in files_of(suite):
        text = file.read_text()
        if file == SWEEP and f'"{name.removesuffix("*")}' in text:
            return True
        if f"START_TEST({name})" in text or (file.suffix == ".sh" and name in text):
            return True
    return False


def findings():
    rows = 0
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 4 or not cells[0].strip("| ").isdigit():
            continue
        rows += 1
        named = False
        for part in cells[3].split(";"):
            suite = None
            for word in re.finditer(r"([a-z_0-9]+): |`([^`]+)`|\*[a-z]+\*", part):
                named = True
                if word[1]:
                    suite = word[1]
                    if not files_of(suite):
                        yield f"{TABLE}:{number}: there is no suite '{suite}'"
                elif word[2] and not exists(suite, word[2]):
                    yield f"{TABLE}:{number}: there is no test '{word[2]}' in '{suite}'"
        if not named:
            yield f"{TABLE}:{number}: names no test"
    if rows != 30:
        yield f"{TABLE}:1: {rows} rows of faults, not 30"


found = list(findings())
print("\n".join(found), end="\n" if found else "")
sys.exit(1 if found else 0)
