"""The page at /: one file, whose script and style are the only ones that may run."""

import base64
import hashlib
import re
from pathlib import Path


def page() -> tuple[str, str]:
    """The page, and its Content-Security-Policy: nothing but what stands in it, and requests to this server."""
    text = Path(__file__).with_name("page.html").read_text("utf-8")
    script, style = (
        " ".join(f"'sha256-{_digest(part)}'" for part in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))
        for tag in ("script", "style")
    )
    policy = {"default-src": "'none'", "script-src": script, "style-src": style, "connect-src": "'self'"}
    policy |= {"img-src": "data:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    return text, "; ".join(f"{name} {value}" for name, value in policy.items())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
