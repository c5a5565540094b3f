"""Download of files from the Hugging Face Hub with its client, which has a cache, a token and an offline mode."""

from __future__ import annotations

from pathlib import Path

from kfrl.errors import UserError

OFFLINE = (
    "Without a network: download the file on a machine with one (it stays in the cache of HF_HOME) and set "
    "HF_HUB_OFFLINE=1, or copy it here and give its path."
)


def download(place: str) -> tuple[Path, str]:
    """Download `owner/repo[@revision]/file` unless the cache has it.

    Returns:
        The local file, and the place with the file's commit as revision.

    Raises:
        UserError: there is no such file, no access or no network, or the client is not installed.
    """
    owner, _, rest = place.partition("/")
    repo_at, _, file = rest.partition("/")
    repo, at, revision = repo_at.partition("@")
    if not (owner and repo and file) or (at and not revision):
        raise UserError(f"Expected hub:owner/repo/file or hub:owner/repo@revision/file, got 'hub:{place}'.")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"hub:{place} needs the Hub's client, which is not installed: pip install huggingface-hub "
            "(or kfrl's extra: pip install -e '.[hub]')."
        ) from None
    try:
        path = Path(hf_hub_download(f"{owner}/{repo}", file, revision=revision or None))
    except HFValidationError as error:
        raise UserError(f"hub:{place} cannot be a place on the Hub: {error}") from None
    except LocalEntryNotFoundError:
        raise UserError(f"The Hub cannot be reached, and hub:{place} is not in the cache. {OFFLINE}") from None
    except RevisionNotFoundError:
        raise UserError(f"The repository {owner}/{repo} of the Hub has no revision {revision!r}.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"The Hub has no repository {owner}/{repo}, or your token (`hf auth login`, or HF_TOKEN) may not see it."
        ) from None
    except EntryNotFoundError:
        raise UserError(f"The repository {owner}/{repo} of the Hub has no file {file!r}.") from None
    except Exception as error:
        raise UserError(f"hub:{place} could not be fetched: {_first_line(error)} {OFFLINE}") from None
    # The cache keeps a file under snapshots/<commit>/.
    commit = path.parents[file.count("/")].name
    return path, f"{owner}/{repo}@{commit}/{file}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
