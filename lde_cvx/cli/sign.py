"""`lde sign`: a detached signature of a batch's manifest, or of single files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from formulations.errors import InputError
from lde_cvx.cli.common import out


def command(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Files, or folders with a manifest.", show_default=False)
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="PEM", help="The private key to sign with (Ed25519).")] = None,
    new_key: Annotated[Path | None, typer.Option("--new-key", metavar="PEM", help="Make a key pair: PEM and PEM.pub.")] = None,
) -> None:
    """Sign certificates or the manifest of a batch with an Ed25519 key; `lde check --key` compares."""
    from lde_cvx.manifest import NAME
    from lde_cvx.signing import new_key as fresh
    from lde_cvx.signing import sign

    if (key is None) == (new_key is None) or (key is not None) != bool(files):
        raise InputError("give --key PEM with the files to sign, or --new-key PEM alone to make a key pair.")
    if new_key is not None:
        out.print(f"private key: {new_key}\npublic key: {fresh(new_key)}", markup=False, soft_wrap=True)
        return
    assert key is not None
    for path in files or []:
        target = path / NAME if path.is_dir() else path
        if path.is_dir() and not target.is_file():
            raise InputError(f"{path}: holds no {NAME}; sign the files one by one.")
        out.print(f"signature: {sign(target, key)}", markup=False, soft_wrap=True)
