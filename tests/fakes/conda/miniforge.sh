#!/bin/sh
#
# Created by constructor 3.11.3
#
# NAME:  Miniforge3
# VER:   26.3.2-3
# PLAT:  linux-64
# MD5:   00000000000000000000000000000000
#
# A fake Miniforge installer: as choosy as the real one, lays down the fake conda, and fails as FAKE_INSTALLER says.
set -eu

{
    printf 'installer'
    printf '\t%s' "$@"
    printf '\n'
} >>"${FAKE_CONDA_LOG:?}"

case $0 in
    *.sh) ;;
    *) echo "Please run using \"bash\"/\"dash\"/\"sh\"/\"zsh\"" >&2 && exit 1 ;;
esac
force=0
while getopts bfp: option; do
    case $option in
        b) ;;
        f) force=1 ;;
        p) prefix=$OPTARG ;;
        *) exit 1 ;;
    esac
done
case $prefix in
    *\ *) echo "ERROR: Cannot install into directories with spaces" >&2 && exit 1 ;;
esac
if [ "$force" = 0 ] && [ -e "$prefix" ]; then
    echo "ERROR: File or directory already exists: '$prefix'" >&2
    exit 1
fi
echo "PREFIX=$prefix"
mkdir -p "$prefix/bin" "$prefix/conda-meta" "$prefix/envs"
case ${FAKE_INSTALLER:-} in
    disk) echo "ERROR: Not enough free disk space." >&2 && exit 1 ;;
    killed) kill -KILL "$PPID" && exit 1 ;;
    terminated) kill -TERM "$PPID" && exit 0 ;;
    empty) exit 0 ;;
esac
cp "${FAKE_CONDA_HOME:?}/conda" "$prefix/bin/conda"
