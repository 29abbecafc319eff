#!/usr/bin/env bash
# Make the package `deft` in .cache/typing, of links into the checkout, for type checkers and for Ray:
# neither follows the import hook by which setuptools installs a checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p .cache/typing/deft
for part in objectives workers evaluators platform sweeps platform/import_root/__init__.py; do
    ln -sfn "../../../$part" ".cache/typing/deft/$(basename "$part")"
done
