"""Model folders on the Hugging Face hub, through the extra ``hub``.

Nothing is executed that comes from there: JSON and safetensors are all that is fetched. Downloads are kept in the hub's
own cache, which also serves without a network.
"""

import re
from pathlib import Path
from types import ModuleType

from ifsq.config import InputError
from ifsq.store.files import first_line

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NEEDED = ("config.json", "model.safetensors")


def locate(
    source: str | Path,
    revision: str | None = None,
    files: tuple[str, ...] = NEEDED,
    optional: tuple[str, ...] = (),
) -> Path:
    """The folder that ``source`` means: a local one, else the copy of the hub's repository ``owner/name``.

    revision  branch, tag or commit on the hub; default: its main branch
    files     what is fetched, all of it needed
    optional  what is fetched where it is there

    A `Path`, or text that is no ``owner/name``, is always local. Raises InputError without the extra, the network, the
    repository or one of the files, and for the revision of a local folder.
    """
    folder = Path(source)
    if isinstance(source, Path) or folder.exists() or not REPOSITORY.fullmatch(source):
        if revision is not None:
            raise InputError(f"{source}: revision {revision!r} of a local folder; expected a repository owner/name")
        return folder
    return _fetch(source, revision, files, optional)


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a folder as the repository ``owner/name``, made if it is not there; returns the address of the commit.

    Who may write is decided by the hub's own login, of which nothing is read or kept here. Raises InputError.
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise InputError(f"{repo_id}: expected a repository owner/name")
    hub = _hub(repo_id)
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with ifsq"))
    except Exception as error:  # the client's own, and those of the transport under it
        raise InputError(f"{repo_id}: cannot be written on the hub: {first_line(error)}") from error


def _fetch(repo_id: str, revision: str | None, files: tuple[str, ...], optional: tuple[str, ...]) -> Path:
    hub = _hub(repo_id)
    errors = hub.errors
    named = repo_id if revision is None else f"{repo_id} at {revision}"
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=[*files, *optional]))
    except errors.GatedRepoError as error:
        raise InputError(f"{named}: the hub asks for a login that was granted access; see the repository") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{named}: neither a folder here nor a repository on the hub (private ones need a login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{named}: the repository has no such revision; expected a branch, tag or commit") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise InputError(
            f"{named}: no such folder here, no copy in the hub's cache, and no way to the hub; expected a network"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise InputError(f"{named}: cannot be fetched from the hub: {first_line(error)}") from error
    for name in files:
        if not (folder / name).is_file():
            raise InputError(f"{named}: the repository holds no {name}; expected {' and '.join(files)}")
    return folder


def _hub(repo_id: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            f"{repo_id}: no such folder here; to use the hub, install the extra: pip install 'ifsq[hub]'"
        ) from error
    return huggingface_hub
