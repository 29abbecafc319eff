"""`deft push`: the model of a run, with its card, as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError, describe_error
from deft.platform.records.find import trained_model


def push_model(run: Path, hub_id: str, console: RunConsole, *, public: bool) -> None:
    """Upload the model of the run in directory ``run``; the same files are not sent twice.

    Args:
        run: directory of a finished run.
        hub_id: repository, ``ORG/NAME``; made if it is not there.
        console: where the result is printed.
        public: whether everyone may read a repository that is made; one that is there already
            stays as it is.

    Raises:
        UserError: the run has no model or card, there is no token, or ``hub_id`` is no name.
        StageError: the hub does not take the model.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import REPOCARD_NAME
    from huggingface_hub.errors import HFValidationError

    model = trained_model(run)
    card = model / REPOCARD_NAME
    if not card.is_file():
        raise UserError(f"{card}: no such file; the command of this run writes it")
    if get_token() is None:
        raise UserError(
            "HF_TOKEN: not set, and nobody is logged in; make a token that may write on the hub's "
            "page, and set HF_TOKEN or run `hf auth login`"
        )
    size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    console.stage("push", f"{size / 1e6:,.1f} MB to {hub_id}")
    hub = HfApi()
    try:
        url = hub.create_repo(hub_id, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=url.repo_id, folder_path=model, commit_message=f"Add the model of {run.name}"
        )
        is_private = hub.model_info(url.repo_id).private
    except HFValidationError as error:
        raise UserError(f"{hub_id}: {error}; give it as ORG/NAME") from None
    except (HTTPError, OSError) as error:
        raise StageError(
            f"{hub_id}: the hub does not take the model ({describe_error(error)}); the same "
            "command tries again"
        ) from error
    console.print(f"{url} ({'private' if is_private else 'public'})")
