"""Upload of a folder's files to a repository of the hub: a report's to a dataset, an export's to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alpaca_ray.errors import OutputError, SettingsError


def check_push(repo: str, *, public: bool, repo_type: str = "dataset", flag: str = "--public") -> str:
    """Check, before anything is read or written, that an upload may go ahead; return the repository's whole id.

    A NAME without an owner is the token's owner's, as it is when a repository is made: asked about by itself, it would
    be another one, of the hub's own.

    Args:
        repo_type: ``dataset`` or ``model``.
        flag: what the user gives to mean a public repository.

    Raises:
        SettingsError: no token is set up, or the repository is public already and ``public`` is not given.
        OutputError: the hub refuses or is not reachable.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not get_token():
        raise SettingsError(f"--push_to_hub {repo}: no token: run `hf auth login`, or set HF_TOKEN")
    api, whole = HfApi(), repo
    try:
        if "/" not in repo:
            whole = f"{api.whoami()['name']}/{repo}"
        found = api.repo_info(whole, repo_type=repo_type)
    except RepositoryNotFoundError:
        return whole
    except Exception as error:
        raise OutputError(f"--push_to_hub {repo}: {_first_line(error)}") from error
    if not found.private and not public:
        raise SettingsError(f"--push_to_hub {whole}: this repository is public: give {flag} too if you mean it")
    return whole


def push(
    folder: Path,
    repo: str,
    files: Mapping[str, str],
    *,
    public: bool,
    repo_type: str = "dataset",
    message: str = "Upload records, card and report",
) -> str:
    """Upload files of a folder in one commit; return the address and whether the repository is private.

    A repository that does not exist is made.

    Args:
        repo: OWNER/NAME, as ``check_push`` returns it.
        files: name in the repository to name in the folder.

    Raises:
        OutputError: the hub refuses or is not reachable; nothing of the commit is kept there then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        made = api.create_repo(repo, repo_type=repo_type, private=not public, exist_ok=True)
        private = api.repo_info(made.repo_id, repo_type=repo_type).private  # what it is, not what was asked for
        if not private and not public:
            raise OutputError("the repository is public although a private one was asked for: nothing was uploaded")
        operations = [
            CommitOperationAdd(path_in_repo=there, path_or_fileobj=str(folder / here)) for there, here in files.items()
        ]
        api.create_commit(made.repo_id, operations, repo_type=repo_type, commit_message=message)
    except Exception as error:
        raise OutputError(f"--push_to_hub {repo}: {_first_line(error)}; the files are in {folder}") from error
    return f"{made} ({'private' if private else 'public'})"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
