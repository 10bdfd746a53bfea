"""What the stages import: a machine without network should say before the first stage what it lacks."""

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Tracking, DVC, pages for a terminal, other machines and the hub, servers; what torch for GPUs brings along.
NEEDLESS = {
    *("mlflow", "sqlalchemy", "filelock", "psutil", "dvc", "vl_convert", "rich"),
    *("openai", "huggingface_hub", "datasets", "lm_eval", "starlette", "uvicorn", "triton"),
}


def missing_packages() -> list[str]:
    """What the stages and the library import, wherever in their text, and is not installed."""
    imported = set()
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    return sorted(name for name in imported - NEEDLESS if importlib.util.find_spec(name) is None)
