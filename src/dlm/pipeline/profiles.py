"""Switch params.yaml to another scale: `python -m dlm.pipeline.profiles NAME` (or `make profile NAME=...`).

profiles/builtin.yaml is the default, whole and commented; every other profile is an overlay that names only what it
changes. The result is checked before params.yaml is touched, and the change is shown as a diff.
"""

import argparse
import difflib
import io
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, RoundTripRepresenter
from ruamel.yaml.error import YAMLError

from dlm.pipeline.start import run_script
from dlm.config.params import parse_params
from dlm.config.yaml import is_text, spelled
from dlm.errors import UserError
from dlm.files import atomic_path

DEFAULT = "builtin"


class _Representer(RoundTripRepresenter):
    """Plain numbers and text so that YAML 1.1 reads them as 1.2 does."""

    def represent_scalar(self, tag: Any, value: Any, style: Any = None, anchor: Any = None) -> Any:
        if style is None and str(tag).endswith((":int", ":float")):
            value = spelled(value)
        elif style is None and str(tag).endswith(":str") and not is_text(value):
            style = "'"
        return super().represent_scalar(tag, value, style, anchor)


def render(folder: Path, name: str) -> str:
    """The text of params.yaml under a profile, comments kept. Raises UserError for an unknown or broken profile."""
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise UserError(f"{name!r} is not a profile; known: {', '.join(known)}")
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        whole = yaml.load(folder / f"{DEFAULT}.yaml")
        overlay = yaml.load(folder / f"{name}.yaml") if name != DEFAULT else {}
    except YAMLError as error:
        raise UserError(f"{folder / name}.yaml: not valid YAML: {' '.join(str(error).split())}") from None
    if name == DEFAULT:
        return (folder / f"{DEFAULT}.yaml").read_text(encoding="utf-8")
    if not isinstance(overlay or {}, dict):
        raise UserError(f"{folder / name}.yaml must be a block of keys like params.yaml")
    merge(whole, overlay or {})
    text = io.StringIO()
    yaml.dump(whole, text)
    return f"# Profile: {name} (profiles/{name}.yaml over profiles/{DEFAULT}.yaml)\n" + text.getvalue()


def merge(base: Any, overlay: Any) -> None:
    """Lay `overlay` over `base` in place: blocks key by key, anything else replaced."""
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default=DEFAULT, help=f"a file of profiles/ (default: {DEFAULT})")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file to write")
    parser.add_argument("--profiles", type=Path, default=Path("profiles"), help="where the profiles are")
    arguments = parser.parse_args()
    text = render(arguments.profiles, arguments.name)
    before = arguments.params.read_text(encoding="utf-8") if arguments.params.is_file() else ""
    parse_params(text, f"profiles/{arguments.name}.yaml")
    with atomic_path(arguments.params) as temporary:
        temporary.write_text(text, encoding="utf-8")
    difference = difflib.unified_diff(
        before.splitlines(True), text.splitlines(True), "params.yaml", arguments.name, n=0
    )
    sys.stdout.writelines(difference)
    print(f"params.yaml is now the profile {arguments.name}; run `dvc repro`")


if __name__ == "__main__":
    run_script(main)
