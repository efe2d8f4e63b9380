# SPDX-License-Identifier: Apache-2.0
"""The natural text: three Debian packages, each with a held-out tail that is never trained on.

bible-kjv     the King James Bible, without verse numbers
wordnet-base  WordNet's words with their glosses, the nouns last
python3-doc   the Python documentation, the library reference last, without its changelog

`python3 texts.py` writes heldout.txt: the last HELDOUT_BYTES of each source, one after another.
"""
import html
import re
import subprocess
from pathlib import Path

HELDOUT_BYTES = 64 * 1024 // 3
HELDOUT_PATH = Path(__file__).with_name("heldout.txt")


def bible():
    """Genesis to Revelation, one verse a line, "Gen1:1" and the like removed."""
    verses = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, check=True)
    return re.sub(r"(?m)^\w+:\d+ ", "", verses.stdout.decode())


def wordnet(folder=Path("/usr/share/wordnet")):
    """Lines such as "breathe, respire: draw air into, and expel out of, the lungs"."""
    lines = []
    for part in ("adj", "adv", "verb", "noun"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split()
            words = fields[4:4 + 2 * int(fields[3], 16):2]
            names = ", ".join(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words)
            lines.append(f"{names}: {gloss.strip()}\n")
    return "".join(lines)


def page_text(page):
    """The main part of one page of the Python documentation, without its tags."""
    main = re.search(r'(?s)<div class="body" role="main">(.*?)<div class="sphinxsidebar"', page)
    if not main:
        return ""
    text = re.sub(r"(?s)<(script|style)\b.*?</\1>|<a class=\"headerlink\".*?</a>", "", main[1])
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return re.sub(r"\n\s*\n+", "\n\n", text).strip() + "\n\n"


def python_docs(root=Path("/usr/share/doc/python3.11-doc/html")):
    """Every page except indexes and the changelog; the library reference comes last."""
    pages = [path for path in root.rglob("*.html")
             if not re.match(r"genindex|search|contents|changelog|py-modindex|_", path.name)]
    pages.sort(key=lambda path: (path.parent.name == "library", str(path)))
    return "".join(page_text(path.read_text(encoding="utf-8")) for path in pages)


def sources():
    """Name -> (bytes to train on, held-out bytes)."""
    split = {}
    for name, text in (("bible", bible()), ("wordnet", wordnet()), ("python", python_docs())):
        data = text.encode()
        split[name] = data[:-HELDOUT_BYTES], data[-HELDOUT_BYTES:]
    return split


if __name__ == "__main__":
    HELDOUT_PATH.write_bytes(b"".join(tail for _, tail in sources().values()))
