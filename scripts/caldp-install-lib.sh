# shellcheck shell=bash
# What the caldp-install-* scripts share. They source it from the clone; it is no command.
# bash 3.2 must understand it, for that is what macOS has.
#
# Exit status: 0 done, 1 a step failed, 2 bad usage, 3 something could not be reached.

set -euo pipefail

MINIFORGE_URL=${CALDP_MINIFORGE_URL:-https://github.com/conda-forge/miniforge/releases/latest/download}
CHANNEL='conda-forge'
PROGRAMS=(calacs.e calwf3.e cs0.e)
UNFINISHED=.caldp-install-unfinished # lies in a CONDA_DIR while the installer is at work there

program=${0##*/}
clone=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd -P)

hstcal=stable
py_ver=3.11
conda_env=caldp_stable
conda_dir=${HOME:+$HOME/miniconda3}
init=yes
replace=no

scratch=
installing=no
moved_to=

# ---- what is said

say() {
    printf '%s: %s\n' "$program" "$*"
}

# fail STATUS MESSAGE [REMEDY...]
fail() {
    local status=$1 line
    printf '%s: %s\n' "$program" "$2" >&2
    shift 2
    for line in ${1+"$@"}; do
        printf '    %s\n' "$line" >&2
    done
    exit "$status"
}

quoted() {
    printf ' %q' "$@"
}

without_password() {
    printf '%s' "$1" | sed 's|//[^/@]*@|//|'
}

# ---- the command line

# parse_arguments LIMIT FLAGS [ARGUMENT...]: sets parameters, count, init and replace; the caller has a function usage.
parse_arguments() {
    local limit=$1 flags=$2 argument
    shift 2
    parameters=()
    count=0
    for argument; do
        case $argument in
            -h | --help)
                usage
                exit 0
                ;;
            -*)
                case " $flags " in
                    *" $argument "*) ;;
                    *) fail 2 "there is no option $argument" "$program --help shows what there is" ;;
                esac
                case $argument in
                    --replace) replace=yes ;;
                    --no-init) init=no ;;
                esac
                ;;
            *)
                parameters[count]=$argument
                count=$((count + 1))
                ;;
        esac
    done
    if [ "$count" -gt "$limit" ]; then
        fail 2 "$count parameters, at most $limit are known" "$program --help shows them"
    fi
}

# Sets conda_dir: absolute, without a slash at the end.
set_conda_dir() {
    conda_dir=$1
    if [ -z "$conda_dir" ]; then
        fail 2 "CONDA_DIR is empty, or HOME is not set"
    fi
    case $conda_dir in
        *$'\n'*) fail 2 "CONDA_DIR has a line feed in it" ;;
        /*) ;;
        *) conda_dir=$PWD/$conda_dir ;;
    esac
    while [ "$conda_dir" != / ] && [ "$conda_dir" != "${conda_dir%/}" ]; do
        conda_dir=${conda_dir%/}
    done
}

set_versions() {
    hstcal=$1
    py_ver=$2
    conda_env=$3
    local minor
    if [ "$hstcal" = latest ]; then
        say "HSTCAL latest is the same as stable: the newest release on $CHANNEL"
        hstcal=stable
    fi
    if [ "$hstcal" != stable ] && ! matches "$hstcal" '^[0-9]+(\.[0-9]+)*(\.\*)?$'; then
        fail 2 "HSTCAL '$hstcal'" "it is stable, latest, a version such as 3.2.0, or a pattern such as 3.2.*"
    fi
    minor=${py_ver#3.}
    minor=${minor%%.*}
    if ! matches "$py_ver" '^3\.[0-9]{1,3}(\.[0-9]+)?$' || [ "$minor" -lt 11 ]; then
        fail 2 "PY_VER '$py_ver'" "caldp needs Python 3.11 or newer: such as 3.11 or 3.11.9"
    fi
    if ! matches "$conda_env" '^[A-Za-z0-9_.][A-Za-z0-9_.-]*$' || matches "$conda_env" '^(base|root|\.+)$'; then
        fail 2 "CONDA_ENV '$conda_env'" \
            "a name of letters, digits, '_', '.' and '-'; not base, which is conda's own environment"
    fi
}

matches() {
    [[ $1 =~ $2 ]]
}

# ---- beginning and end

# begin ARGUMENT...: once the arguments are known to be good
begin() {
    export PYTHONNOUSERSITE=1 # else pip finds in ~/.local what the environment lacks
    unset PYTHONPATH PYTHONHOME
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/caldp-install.XXXXXX")
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    trap - EXIT
    set +e
    if [ "$installing" = yes ]; then
        say "removing the unfinished installation in $conda_dir" >&2
        rm -rf -- "$conda_dir"
    fi
    if [ -n "$moved_to" ] && [ -d "$moved_to" ]; then
        rmdir -- "$conda_dir" 2>/dev/null
        if [ ! -e "$conda_dir" ] && mv -- "$moved_to" "$conda_dir"; then
            say "the earlier installation is back in $conda_dir" >&2
        else
            say "the earlier installation is in $moved_to" >&2
        fi
    fi
    rm -rf -- "$scratch"
    if [ "$status" -ne 0 ]; then
        local again
        again=("$0")
        [ "$count" -eq 0 ] || again=("$0" "${parameters[@]}")
        [ "$replace" = no ] || again=("${again[@]}" --replace)
        [ "$init" = yes ] || again=("${again[@]}" --no-init)
        say "not finished (exit status $status). To go on where it stopped, run$(quoted "${again[@]}")" >&2
    fi
    exit "$status"
}

# ---- conda

conda_works() {
    "$conda_dir/bin/conda" --version >/dev/null 2>&1 </dev/null
}

# What is in CONDA_DIR: nothing, unfinished, working, broken or foreign.
state_of_conda_dir() {
    if [ ! -e "$conda_dir" ] && [ ! -L "$conda_dir" ]; then
        echo nothing
    elif [ -e "$conda_dir/$UNFINISHED" ]; then
        echo unfinished
    elif conda_works; then
        echo working
    elif [ -x "$conda_dir/bin/conda" ] && [ -d "$conda_dir/conda-meta" ]; then
        echo broken
    elif [ -d "$conda_dir" ] && [ -z "$(ls -A "$conda_dir")" ]; then
        echo nothing
    else
        echo foreign
    fi
}

# Directories that nobody wants to see moved away, whatever is in them.
refuse_precious() {
    local real precious
    [ -d "$conda_dir" ] || return 0
    real=$(cd -P "$conda_dir" && pwd -P)
    for precious in / "${HOME:-/}" "$clone" "$PWD"; do
        [ -d "$precious" ] || continue
        precious=$(cd -P "$precious" && pwd -P)
        case ${precious%/}/ in
            "${real%/}/"*)
                fail 2 "CONDA_DIR $conda_dir is, or contains, $precious" "nothing is installed or replaced there"
                ;;
        esac
    done
}

install_conda() {
    local state
    state=$(state_of_conda_dir)
    if [ "$state" = working ] && [ "$replace" = no ]; then
        say "$("$conda_dir/bin/conda" --version 2>/dev/null) is in $conda_dir and is used (--replace would put a new one there)"
        init_shell
        return
    fi
    refuse_precious
    if [ "$state" = working ] && [ ! -d "$conda_dir/conda-meta" ]; then
        state=foreign
    fi
    case $state-$replace in
        broken-no)
            fail 1 "conda is in $conda_dir but does not work" \
                "repair it, give another CONDA_DIR, or say --replace to have a new one in its place"
            ;;
        foreign-*)
            fail 1 "$conda_dir is there and is no conda installation" \
                "nothing was changed, and --replace changes nothing there either; give another CONDA_DIR"
            ;;
    esac
    case $conda_dir in
        *[[:space:]]*)
            fail 2 "CONDA_DIR '$conda_dir'" "Miniforge cannot be installed where a path has blanks: give another CONDA_DIR"
            ;;
    esac

    obtain_installer
    if [ "$state" = unfinished ]; then
        say "removing what an earlier, unfinished run left in $conda_dir"
        rm -rf -- "$conda_dir"
    elif [ "$state" != nothing ]; then
        moved_to=$conda_dir.replaced-$(date +%Y%m%d-%H%M%S)
        say "moving $conda_dir to $moved_to"
        mv -- "$conda_dir" "$moved_to"
    fi
    say "installing conda in $conda_dir"
    mkdir -p -- "$conda_dir"
    : >"$conda_dir/$UNFINISHED"
    installing=yes
    # -f: the directory is there already, with the mark of an unfinished installation in it
    if ! bash "$installer" -b -f -p "$conda_dir" </dev/null; then
        fail 1 "the Miniforge installer failed" "its own words are above"
    fi
    if ! conda_works; then
        fail 1 "the Miniforge installer ended well, but $conda_dir/bin/conda does not work"
    fi
    rm -- "$conda_dir/$UNFINISHED"
    installing=no
    replace=no
    say "installed: $("$conda_dir/bin/conda" --version)"
    if [ -n "$moved_to" ]; then
        say "the earlier installation, which no longer works from there, is kept for its files. To remove it:$(
            quoted rm -rf "$moved_to"
        )"
        moved_to=
    fi
    init_shell
}

init_shell() {
    if [ "$init" = no ]; then
        return
    fi
    say "conda init bash: makes 'conda activate' known to new shells (--no-init leaves that out)"
    if ! "$conda_dir/bin/conda" init bash </dev/null; then
        fail 1 "conda init bash failed" "--no-init leaves it out"
    fi
}

# Sets installer: downloaded, and found to be what was published.
obtain_installer() {
    local system name version published found
    case $(uname -s)-$(uname -m) in
        Linux-x86_64) system=Linux-x86_64 ;;
        Linux-aarch64 | Linux-arm64) system=Linux-aarch64 ;;
        Darwin-x86_64) system=MacOSX-x86_64 ;;
        Darwin-arm64) system=MacOSX-arm64 ;;
        *)
            fail 1 "there is no installer for $(uname -s) on $(uname -m)" \
                "install conda in a way of your own and give its directory as CONDA_DIR"
            ;;
    esac
    case $MINIFORGE_URL in
        https://* | file:///* | http://127.0.0.1[:/]* | http://localhost[:/]*) ;;
        *)
            fail 2 "CALDP_MINIFORGE_URL '$(without_password "$MINIFORGE_URL")'" \
                "it begins with https:// or file:/// (or is http:// of this very machine)"
            ;;
    esac
    name=Miniforge3-$system.sh
    installer=$scratch/$name
    say "downloading $(without_password "${MINIFORGE_URL%/}")/$name (about 100 MB)"
    if ! download "$name" "$installer"; then
        unreachable_miniforge "$name" "$(<"$scratch/why")"
    fi

    # The release page has checksums only under names with a version, and the installer tells its own in a comment.
    # A mirror made by hand may have one for the plain name.
    version=$(head -n 20 "$installer" | LC_ALL=C sed -n 's/^# VER: *\([0-9A-Za-z._-]*\) *$/\1/p')
    if { [ -z "$version" ] || ! download "Miniforge3-$version-$system.sh.sha256" "$scratch/sha256"; } &&
        ! download "$name.sha256" "$scratch/sha256"; then
        unreachable_miniforge "Miniforge3-${version:-<version>}-$system.sh.sha256" "$(<"$scratch/why")"
    fi
    published=$(awk 'NR == 1 {print tolower($1)}' "$scratch/sha256")
    if command -v sha256sum >/dev/null; then
        found=$(sha256sum <"$installer" | awk '{print $1}')
    elif command -v shasum >/dev/null; then
        found=$(shasum -a 256 <"$installer" | awk '{print $1}')
    else
        fail 1 "neither sha256sum nor shasum is there to check the installer" "install one of them"
    fi
    if ! matches "$published" '^[0-9a-f]{64}$' || [ "$published" != "$found" ]; then
        fail 1 "$name is not what was published: its SHA-256 is $found, not ${published:-<none>}" \
            "damaged on the way, or tampered with; it was not run. Try again, or ask whoever keeps the mirror"
    fi
    say "its SHA-256 is the published one: $found"
}

# download NAME TO: the reason of a failure is left in the file why. A full disk ends everything.
download() {
    local from=${MINIFORGE_URL%/}/$1 status=0
    case $from in
        file://*) cp -- "${from#file://}" "$2" 2>"$scratch/why" || status=$? ;;
        *)
            if command -v curl >/dev/null; then
                curl --fail --location --proto-redir =https --retry 3 --connect-timeout 30 --speed-time 60 \
                    --silent --show-error --output "$2" "$from" 2>"$scratch/why" || status=$?
                [ "$status" -ne 23 ] || fail 1 "$1 cannot be written to $scratch" "free some space, or export TMPDIR"
            elif command -v wget >/dev/null; then
                wget --tries=3 --timeout=60 --no-verbose --output-document="$2" "$from" 2>"$scratch/why" || status=$?
                [ "$status" -ne 3 ] || fail 1 "$1 cannot be written to $scratch" "free some space, or export TMPDIR"
            else
                fail 1 "neither curl nor wget is there to download $1" "install one of them"
            fi
            ;;
    esac
    return "$status"
}

unreachable_miniforge() {
    fail 3 "cannot reach $(without_password "${MINIFORGE_URL%/}")/$1" \
        "${2##*$'\n'}" \
        "Behind a proxy: export https_proxy=http://<host>:<port>" \
        "From a mirror or a directory: export CALDP_MINIFORGE_URL=https://... or file:///<directory> with that file in it" \
        "With a conda that is there already: give its directory as CONDA_DIR"
}

# ---- the environment

# attempt WHAT COMMAND...: runs conda or pip and, if it fails, says whether the network is to blame.
attempt() {
    local what=$1 status=0 words url
    shift
    "$@" </dev/null 2>&1 | tee "$scratch/log" || status=$?
    if [ "$status" -eq 0 ]; then
        return
    fi
    words='^(CondaHTTPError|CondaSSLError|ProxyError|UnavailableInvalidChannel)|CONNECTION FAILED'
    if grep -q 'PackagesNotFound' "$scratch/log"; then
        fail 1 "$what failed: $CHANNEL does not have what was asked for (above)" \
            "hstcal is there for Linux on x86_64 and for macOS: https://anaconda.org/conda-forge/hstcal"
    elif grep -Eq "$words" "$scratch/log"; then
        url=$(sed -n '/.*<\([a-z]*:\/\/[^>]*\)>.*/{s//\1/p;q;}' "$scratch/log")
        fail 3 "$what failed: cannot reach the channel $CHANNEL${url:+ ($(without_password "$url"))}" \
            "Behind a proxy: export https_proxy=http://<host>:<port>" \
            "From a mirror:$(quoted "$conda_dir/bin/conda") config --set channel_alias https://<mirror>"
    elif grep -Eq 'NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|SSLError' \
        "$scratch/log"; then
        fail 3 "$what failed: cannot reach the Python package index" \
            "Behind a proxy: export https_proxy=http://<host>:<port>" \
            "From a mirror: export PIP_INDEX_URL=https://<mirror>/simple"
    fi
    fail 1 "$what failed (exit status $status)" "its own words are above"
}

in_environment() {
    "$conda_dir/bin/conda" run --no-capture-output --name "$conda_env" "$@"
}

has_environment() {
    local list
    if ! list=$("$conda_dir/bin/conda" env list </dev/null); then
        fail 1 "$conda_dir/bin/conda env list failed"
    fi
    printf '%s\n' "$list" | awk -v name="$conda_env" 'NF > 1 && $1 == name {found = 1} END {exit !found}'
}

install_cal() {
    local conda=$conda_dir/bin/conda specs
    if ! conda_works || [ -e "$conda_dir/$UNFINISHED" ]; then
        fail 1 "there is no working conda in $conda_dir" "first run$(quoted "$clone/scripts/caldp-install-conda" "$conda_dir")"
    fi
    specs=("python=$py_ver" hstcal pip)
    [ "$hstcal" = stable ] || specs[1]=hstcal=$hstcal
    # Not `create` for an environment that is there: with --yes it would delete that first.
    if has_environment; then
        say "conda environment $conda_env is there: bringing it to ${specs[*]}"
        attempt "conda install" "$conda" install --yes --name "$conda_env" --override-channels -c "$CHANNEL" "${specs[@]}"
        if [ "$hstcal" = stable ]; then
            # install is content with any hstcal that is there already
            attempt "conda update" "$conda" update --yes --name "$conda_env" --override-channels -c "$CHANNEL" hstcal
        fi
    else
        if [ -e "$conda_dir/envs/$conda_env" ]; then
            fail 1 "$conda_dir/envs/$conda_env is there and is no conda environment" \
                "nothing was changed; remove it, or give another CONDA_ENV"
        fi
        say "making conda environment $conda_env of ${specs[*]}"
        attempt "conda create" "$conda" create --yes --name "$conda_env" --override-channels -c "$CHANNEL" "${specs[@]}"
    fi
    check_programs
}

check_programs() {
    local name version
    for name in "${PROGRAMS[@]}"; do
        if ! version=$(in_environment "$name" --version </dev/null 2>&1); then
            printf '%s\n' "$version" >&2
            fail 1 "$name does not run in the environment $conda_env" "its own words are above"
        fi
        say "$name ${version%%$'\n'*}"
    done
}

# ---- caldp itself

explain_fitscut() {
    say "fitscut is not needed: caldp makes the previews itself. Nothing was installed."
}

install_caldp() {
    say "pip install .[dev,test]"
    cd "$clone"
    attempt "pip install" in_environment python -m pip install '.[dev,test]'
    say "caldp doctor caldp-config-offsite"
    if ! in_environment caldp doctor caldp-config-offsite </dev/null; then
        fail 1 "caldp doctor finds something amiss (FAIL above)" "put it right as it says"
    fi
}

say_how_to_activate() {
    say "done. To use it:"
    printf '    source%s\n' "$(quoted "$conda_dir/etc/profile.d/conda.sh")"
    printf '    conda activate %s\n' "$conda_env"
}
