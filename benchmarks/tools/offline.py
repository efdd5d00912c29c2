"""Make a published dashboard independent of the internet.

    asv publish
    python benchmarks/tools/offline.py .asv/html
    python benchmarks/tools/offline.py .asv/html --scripts FOLDER

asv's pages fetch jQuery, Flot and Bootstrap from content delivery networks. This copies them into
the dashboard from FOLDER, by default where Debian's packages libjs-jquery, libjs-jquery-flot,
libjs-bootstrap, libjs-jquery-stupidtable and libjs-blueimp-md5 put them, and changes index.html to
use the copies. A cluster without internet can then show its dashboard, and so can a test.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

DEBIAN = Path("/usr/share/javascript")
# Groups of bars stand behind each other without it, lines are as they are; no package has it.
OPTIONAL = {"jquery.flot.orderBars.js"}

_REMOTE = re.compile(
    r'<(script|link)\b[^>]*?\b(?:src|href)="https://[^"]*/([^"/]+)"[^>]*>(</script>)?'
)
_LEGEND = """<style>
.legend rect.background { fill: #fff; fill-opacity: .85; }
.legend text { fill: #333; }
</style>
"""


def localise(html: Path, scripts: Path = DEBIAN) -> list[str]:
    """Change html/index.html to local scripts and give their names.

    Raises
    ------
    FileNotFoundError
        If a script is not under `scripts`; the message names all that are missing.
    """
    page = (html / "index.html").read_text(encoding="utf-8")
    found: dict[str, Path | None] = {}
    for match in _REMOTE.finditer(page):
        name = match[2]
        found[name] = _find(scripts, re.sub(r"-\d[\d.]*\d(?=\.min\.|\.js)", "", name))
    missing = sorted(name for name, path in found.items() if path is None and name not in OPTIONAL)
    if missing:
        raise FileNotFoundError(f"{scripts} has none of {', '.join(missing)}")
    folder = html / "local"
    folder.mkdir(exist_ok=True)
    for name, path in found.items():
        if path is not None:
            shutil.copyfile(path, folder / name)

    def local(match: re.Match[str]) -> str:
        if found[match[2]] is None:
            return ""
        if match[1] == "link":
            return f'<link rel="stylesheet" href="local/{match[2]}">'
        return f'<script src="local/{match[2]}" onerror="js_load_failure()"></script>'

    page = _REMOTE.sub(local, page)
    flot = found.get("jquery.flot.min.js")
    if flot is not None and b"legendLayer" in flot.read_bytes():
        # Flot 3 and later, unlike the one asv asks for: it labels axes by itself, and its legend
        # is a drawing whose colours a style sheet gives.
        page = re.sub(r"<script[^>]*jquery\.flot\.axislabels\.js[^>]*></script>", "", page)
        page = page.replace("</head>", _LEGEND + "</head>", 1)
    (html / "index.html").write_text(page, encoding="utf-8")
    return sorted(name for name, path in found.items() if path is not None)


def _find(scripts: Path, name: str) -> Path | None:
    return next((path for path in sorted(scripts.glob(f"**/{name}"))), None) or next(
        (path for folder in sorted(scripts.glob("*/")) for path in sorted(folder.rglob(name))), None
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("html", type=Path, help="folder that `asv publish` wrote")
    parser.add_argument("--scripts", type=Path, default=DEBIAN, help=f"default {DEBIAN}")
    given = parser.parse_args()
    try:
        names = localise(given.html, given.scripts)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.html / 'index.html'} now uses its own {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
