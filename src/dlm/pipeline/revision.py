"""Which code a run is of, as far as git tells."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

UNKNOWN = "unknown"
# What git says (in English), and what is to be done.
REMEDIES = {
    r"dubious ownership[\s\S]*?(git config --global --add safe\.directory .*)": (
        r"git does not read a folder of another user; `\1` allows it"
    ),
    r"not a git repository": (
        "this is no git repository (a downloaded archive?); `git clone` it, "
        "or `git init`, `git add -A` and `git commit` here"
    ),
    r"'?HEAD'?": "git has no commit of this dvc.yaml; `git add -A` and `git commit`",
}


class Revision(NamedTuple):
    sha: str  # UNKNOWN where git does not tell
    dirty: str  # whether tracked files differ from that commit: "true", "false" or UNKNOWN
    lost: str  # why something is UNKNOWN, and the remedy


def revision(workspace: Path) -> Revision:
    """The commit of the workspace, which is one that has its dvc.yaml: not that of a repository around it."""
    sha = dirty = UNKNOWN
    its_dvc_yaml = ["HEAD:./dvc.yaml"] if (workspace / "dvc.yaml").exists() else []
    try:
        sha = _git(workspace, "rev-parse", "HEAD", *its_dvc_yaml).split()[0]
        # DVC rewrites dvc.lock while the pipeline runs: that alone is no other code.
        dirty = str(_git(workspace, "status", "--porcelain", "-uno", "--", ".", ":!dvc.lock") != "").lower()
    except FileNotFoundError:
        return Revision(sha, dirty, "there is no git; install it")
    except subprocess.TimeoutExpired:
        return Revision(sha, dirty, "git takes longer than ten seconds; `git gc` may help")
    except (OSError, subprocess.SubprocessError) as error:
        return Revision(sha, dirty, _remedy(getattr(error, "stderr", None) or str(error)))
    return Revision(sha, dirty, "")


def _remedy(said: str) -> str:
    for sign, remedy in REMEDIES.items():
        if match := re.search(sign, said):
            return match.expand(remedy)
    return " ".join(said.split())


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; it takes no lock that DVC's own use of git could meet."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10, env=environment
    ).stdout.strip()
