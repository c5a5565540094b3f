"""Files of the Hugging Face Hub, through its own client: its cache, its token, its offline mode."""

from __future__ import annotations

from pathlib import Path

from kfrl.errors import UserError

OFFLINE = (
    "Without a network: fetch the file where there is one (it stays in the cache of HF_HOME) and set HF_HUB_OFFLINE=1, "
    "or copy it here and give its path."
)


def download(place: str) -> Path:
    """Return the local file of `owner/repo/file`, fetched unless the cache has it.

    Raises:
        UserError: no such file, no access, no network, or the client is not installed.
    """
    owner, _, rest = place.partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and repo and file):
        raise UserError(f"Expected hub:owner/repo/file, got 'hub:{place}'.")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise UserError(
            f"hub:{place} needs the Hub's client, which is not installed: pip install huggingface-hub "
            "(or kfrl's extra: pip install -e '.[hub]')."
        ) from None
    try:
        return Path(hf_hub_download(f"{owner}/{repo}", file))
    except HFValidationError as error:
        raise UserError(f"hub:{place} cannot be a place on the Hub: {error}") from None
    except LocalEntryNotFoundError:
        raise UserError(f"The Hub is out of reach, and hub:{place} is not in its cache. {OFFLINE}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"The Hub has no repository {owner}/{repo}, or your token (`hf auth login`, or HF_TOKEN) may not see it."
        ) from None
    except EntryNotFoundError:
        raise UserError(f"The repository {owner}/{repo} of the Hub has no file {file!r}.") from None
    except Exception as error:
        raise UserError(f"hub:{place} could not be fetched: {_first_line(error)} {OFFLINE}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
