"""`dlm verify`: what DVC keeps against its hashes.

DVC takes a read-only file in its cache for what its name says: a spoilt one is checked out, and shared, unnoticed.
"""

from pathlib import Path

from dlm.errors import UserError
from dlm.pipeline.locks import md5, outputs


def verify() -> int:
    """Compare every object in DVC's cache with the hash that it is named by.

    Spoilt ones are removed, and the outputs that are copies of them, so that the next `dvc pull` or `dvc repro` makes
    them again. Whatever else differs from dvc.lock is the user's own and stays.

    Returns:
        How many objects are whole.

    Raises:
        UserError: some were spoilt; no DVC here, no repository or no dvc.lock.
    """
    files = list(outputs())
    store = _cache()
    objects = sorted(path for path in store.glob(f"??/{'?' * 30}*") if path.is_file())
    # A folder's object lists its files; the name says so, and the hash is that of the list.
    spoilt = {path: digest for path in objects if (digest := md5(path)) != path.parent.name + path.stem}
    if not spoilt:
        return len(objects)
    contents = set(spoilt.values())
    copies = [file for file in files if md5(file) in contents]
    for path in [*spoilt, *copies]:
        path.unlink()
    names = ", ".join(map(str, copies)) or "of which no output here is a copy"
    raise UserError(
        f"{store}: {len(spoilt)} of {len(objects)} objects were spoilt and are removed ({names}); "
        "`dvc pull` or `dvc repro` makes them again"
    )


def _cache() -> Path:
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        raise UserError("verify needs dvc; install the extra [pipeline]") from None
    try:
        return Path(Repo().cache.local.path)
    except DvcException as error:
        raise UserError(f"no cache of DVC: {error}") from None
