#!/bin/sh
# Make .venv hold what a set of make targets needs: `bootstrap.sh demo` or `bootstrap.sh dev`.
# Returns at once when .venv was already made in this folder, for this pyproject.toml and for these
# files of the sidebar, which pip copies into .venv.
set -eu

set=$1
root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"
py=.venv/bin/python
mark=.venv/made-for
oldest=11
newest=14

say() { printf 'macluster: %s\n' "$*"; }

fits() {
  "$1" -c "import sys; sys.exit(not (3, $oldest) <= sys.version_info[:2] <= (3, $newest))" \
    >/dev/null 2>&1
}

# python3 first, as the person's own choice. 3.14 last: releases exist, but our tests have not run on it.
find_python() {
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
    if fits "$name"; then
      command -v "$name"
      return
    fi
  done
}

has() { command -v "$1" >/dev/null 2>&1; }

give_up_no_python() {
  cat >&2 <<END
macluster: no fitting Python here.

  What   make needs Python 3.$oldest to 3.$newest; it looked for python3, python3.13, python3.12,
         python3.11 and python3.14 on PATH.
  Found  $( (python3 --version) 2>/dev/null || echo 'no python3 that runs')
  Why    MLX, mlx-lm and numba have releases for these versions only.
  Do     one of these, then run make again:
           macOS          brew install python@3.12
           Debian/Ubuntu  sudo apt install python3 python3-venv
           anywhere       install uv, and make will get a Python through it
           or name one    make PYTHON=/path/to/python3.12 ...
END
  exit 1
}

give_up_no_venv() {
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  cat >&2 <<END
macluster: $1 can not make a virtual environment.

  What   its module "ensurepip" is missing.
  Why    Debian and Ubuntu ship it in a package of its own.
  Do     sudo apt install python$version-venv
         then run make again. (With uv or virtualenv on PATH, make uses that instead.)
END
  exit 1
}

make_venv() {
  base=$(find_python)
  # Written first, so that a run that was interrupted is known as ours and made anew.
  mkdir -p .venv
  echo "unfinished" >"$mark"
  if [ -n "$base" ] && "$base" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    say "making .venv with $("$base" --version) ($base)"
    "$base" -m venv .venv
  elif has uv; then
    say "making .venv with uv and Python ${base:-3.12}"
    uv venv --quiet --seed --allow-existing --python "${base:-3.12}" .venv
  elif [ -n "$base" ] && has virtualenv; then
    say "making .venv with virtualenv and $base"
    virtualenv --quiet --python "$base" .venv
  elif [ -n "$base" ] && "$base" -m virtualenv --version >/dev/null 2>&1; then
    say "making .venv with virtualenv and $base"
    "$base" -m virtualenv --quiet .venv
  else
    rm -rf .venv
    [ -n "$base" ] || give_up_no_python
    give_up_no_venv "$base"
  fi
  echo "$root" >"$mark"
}

# The content decides, not the date: a checkout of another branch and back changes no content.
copied=$(find labextension/dist labextension/install.json \
  macluster/server/jupyter_server_config.json -type f 2>/dev/null | sort)
# shellcheck disable=SC2086 # the names have no spaces
key="$(cat pyproject.toml $copied | cksum) $root"
if [ -x "$py" ] && [ "$(cat "$mark" 2>/dev/null)" = "$root" ]; then
  for done_set in dev "$set"; do
    [ "$(cat ".venv/installed-$done_set" 2>/dev/null)" != "$key" ] || exit 0
  done
elif [ -e "$mark" ]; then
  say "this checkout was moved, its Python is gone, or the last run was cut off: making .venv anew"
  # Moved first: a half-deleted .venv would look like somebody else's.
  mkdir -p build
  rm -rf build/old-venv
  mv .venv build/old-venv
  rm -rf build/old-venv
  make_venv
elif [ -d .venv ]; then
  # Somebody's own environment: use it when it can be used, never delete it.
  if ! fits "$py" || ! "$py" -m pip --version >/dev/null 2>&1; then
    say ".venv is not one that make made, and has no pip or no Python 3.$oldest-3.$newest." >&2
    say "Move it away or delete it, then run make again." >&2
    exit 1
  fi
  echo "$root" >"$mark"
else
  make_venv
fi

case $set in
  demo) size="about 900 MB on disk, 1-4 minutes" ;;
  *) size="about 1.4 GB on disk, 2-6 minutes" ;;
esac
say "installing the $set set of pyproject.toml into .venv ($size the first time)"

# A sign of life every 20 seconds. pip stays in the foreground: Ctrl-C must reach it.
start=$(date +%s)
(
  trap 'kill "$nap" 2>/dev/null; exit 0' TERM
  while :; do
    sleep 20 &
    nap=$!
    wait "$nap"
    say "still installing, $(($(date +%s) - start)) s"
  done
) &
beat=$!
trap 'kill "$beat" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

rm -f ".venv/installed-$set"
# -qq leaves errors only.
if ! "$py" -m pip install -qq --no-input --progress-bar off -e ".[$set]" </dev/null; then
  say "pip could not install the $set set of pyproject.toml; its error is above." >&2
  say "Most often the network or a full disk is the cause. Run the same make again to go on." >&2
  exit 1
fi
echo "$key" >".venv/installed-$set"
say "ready after $(($(date +%s) - start)) s"
