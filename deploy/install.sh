#!/bin/sh
# Installs a NimsForest node on this machine, or brings an installed one to another version. Running it twice changes
# nothing. Nothing is started, restarted or overwritten that an operator may have changed.
set -eu

usage() {
    cat <<'END'
Usage: install.sh [options]
  --source WHAT    wheel, source directory or pip requirement to install  [default: the directory above this script]
  --python PYTHON  interpreter, 3.11 or newer, that the service user can read  [default: the first one found]
  --prefix DIR     where the program goes  [default: /opt/nimsforest]
  --root DIR       put everything below DIR and leave this machine's users and services alone
  --user NAME      whom the service runs as  [default: nimsforest]
  --uninstall      remove program and unit; settings and data stay
  -h, --help       this text
END
}

here=$(cd "$(dirname "$0")" && pwd)
source=$here/..
python='' prefix=/opt/nimsforest root='' user=nimsforest uninstall=''

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

say() {
    printf '%s\n' "$1"
}

while [ $# -gt 0 ]; do
    case $1 in
    --source | --python | --prefix | --root | --user)
        [ $# -gt 1 ] || fail "$1 needs a value"
        ;;
    esac
    case $1 in
    --source) source=$2 && shift ;;
    --python) python=$2 && shift ;;
    --prefix) prefix=$2 && shift ;;
    --root) root=$2 && shift ;;
    --user) user=$2 && shift ;;
    --uninstall) uninstall=yes ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && fail "unknown option $1" ;;
    esac
    shift
done
case $prefix in /*) ;; *) fail "--prefix must be an absolute path" ;; esac
case $root in '' | /*) ;; *) fail "--root must be an absolute path" ;; esac

program=$root$prefix
settings=$root/etc/nimsforest
units=$root/etc/systemd/system
command=$root/usr/local/bin/nimsnats
data=/var/lib/nimsforest

# Whether this machine's own service manager is meant, and runs.
manages() {
    [ -z "$root" ] && [ -d /run/systemd/system ]
}

if [ -z "$root" ] && [ "$(id -u)" -ne 0 ]; then
    fail "run it as root, or with --root to try it out"
fi

if [ -n "$uninstall" ]; then
    for unit in nimsforest.service nimsforest-registry.service; do
        if manages && [ -e "$units/$unit" ]; then
            systemctl disable --now "$unit"
        fi
        rm -f "$units/$unit"
    done
    rm -rf "$program/releases" "$program/share" "$program/venv"
    if [ -L "$command" ] && [ "$(readlink "$command")" = "$prefix/venv/bin/nimsnats" ]; then
        rm "$command"
    fi
    rmdir "$program" 2>/dev/null || true
    if manages; then
        systemctl daemon-reload
    fi
    say "Removed. Data, settings and the user stay; to remove these as well:"
    say "  rm -r $root$data $settings && userdel $user"
    exit 0
fi

# -- the program -------------------------------------------------------------------------------------------------------

is_suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || return 1
    [ -n "$root" ] && return 0
    # the service sees no home directories
    case $("$1" -c 'import os, sys; print(os.path.realpath(sys.executable))') in
    /root/* | /home/* | /tmp/*) return 1 ;;
    esac
}

if [ -n "$python" ]; then
    is_suitable "$python" ||
        fail "$python is not Python 3.11 or newer with venv, or lies in a home directory, where the service cannot see it"
else
    for candidate in python3 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null && is_suitable "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no Python 3.11 or newer with venv outside of home directories (Debian: apt install python3-venv)"
fi

mkdir -p "$program/releases"
new=$(mktemp -d "$program/releases/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT

case $source in
*.whl) cp "$source" "$new" ;;
*)
    if [ -d "$source" ]; then
        # built from a copy: a build leaves traces
        mkdir "$new/source"
        (cd "$source" && tar cf - pyproject.toml README.md LICENSE nimsnats forest) | tar xf - -C "$new/source"
        source=$new/source
    fi
    "$python" -m venv "$new/builder"
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800} "$new/builder/bin/pip" --quiet --disable-pip-version-check \
        wheel --no-deps --wheel-dir "$new" "$source" ||
        fail "$source cannot be built, nothing has changed (machines without a package index: see DEPLOYMENT.md)"
    ;;
esac
wheel=$(find "$new" -maxdepth 1 -name 'nimsnats-*.whl')
[ -f "$wheel" ] || fail "$source is no nimsnats"
version=$(basename "$wheel" | cut -d- -f2)
release=$version-$(sha256sum "$wheel" | cut -c1-12)

if [ -x "$program/releases/$release/bin/nimsnats" ]; then
    say "Program: $release is there already"
else
    # built where it stays, since a virtual environment cannot move; the link is set once it works
    rm -rf "${program:?}/releases/$release"
    "$python" -m venv "$program/releases/$release"
    if ! "$program/releases/$release/bin/pip" --quiet --disable-pip-version-check install "$wheel" ||
        ! "$program/releases/$release/bin/python" -c 'import nimsnats.cli, nimsnats.node, forest.app'; then
        rm -rf "${program:?}/releases/$release"
        fail "$release cannot be installed; nothing has changed"
    fi
    chmod -R go+rX "$program/releases/$release"
    say "Program: installed $release"
fi
chmod 755 "$program" "$program/releases"
before=$(readlink "$program/venv" 2>/dev/null || true)
ln -s "releases/$release" "$new/venv"
mv -T "$new/venv" "$program/venv"
if [ "$before" != "releases/$release" ]; then
    # the one before stays, to go back to, and so does one that still runs
    for old in "$program"/releases/*; do
        name=$(basename "$old")
        case releases/$name in
        "releases/$release" | "$before") continue ;;
        esac
        grep -qs "$prefix/[r]eleases/$name/" /proc/[0-9]*/cmdline || rm -rf "$old"
    done
fi

mkdir -p "$(dirname "$command")"
if [ ! -e "$command" ] && [ ! -L "$command" ]; then
    ln -s "$prefix/venv/bin/nimsnats" "$command"
fi

# -- user, settings, unit ----------------------------------------------------------------------------------------------

if [ -n "$root" ]; then
    say "User: left alone (--root)"
elif id "$user" >/dev/null 2>&1; then
    say "User: $user is there already"
else
    useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin "$user"
    say "User: created $user"
fi

mkdir -p "$settings" "$units" "$program/share"
cp "$here/nimsforest.env.template" "$settings/nimsforest.env.template"
if [ -e "$settings/nimsforest.env" ]; then
    say "Settings: $settings/nimsforest.env is there already and stays as it is"
else
    # every new file has a secret of its own: a node that was forgotten stays alone instead of open to everybody
    secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    (umask 077 && sed "s/^#NATS_CLUSTER_SECRET=\$/NATS_CLUSTER_SECRET=$secret/" "$here/nimsforest.env.template" \
        >"$settings/nimsforest.env")
    secret=''
    say "Settings: created $settings/nimsforest.env"
fi
if [ -f "$here/DEPLOYMENT.md" ]; then
    cp "$here/DEPLOYMENT.md" "$program/share/DEPLOYMENT.md"
fi

for unit in nimsforest.service nimsforest-registry.service; do
    sed -e "s|/opt/nimsforest/|$prefix/|g" -e "s|^User=.*|User=$user|" -e "s|^Group=.*|Group=$user|" \
        "$here/$unit" >"$new/unit"
    if [ -e "$units/$unit" ] && cmp -s "$new/unit" "$units/$unit"; then
        say "Unit: $units/$unit is there already"
    else
        cp "$new/unit" "$units/$unit"
        chmod 644 "$units/$unit"
        say "Unit: wrote $units/$unit"
        if manages; then
            systemctl daemon-reload
        fi
    fi
done

# -- what is next ------------------------------------------------------------------------------------------------------

say ""
if manages && systemctl --quiet is-active nimsforest.service; then
    say "A node is running with what was there before. One machine after the other, when its cluster is healthy:"
    say "  systemctl restart nimsforest && nimsnats status"
    exit 0
fi
say "Next:"
say "  1. Look through $settings/nimsforest.env: registry, and NATS_CLUSTER_SECRET as on the first machine"
say "  2. nimsnats doctor --env-file $settings/nimsforest.env"
say "  3. systemctl enable --now nimsforest"
say "  4. nimsnats status"
