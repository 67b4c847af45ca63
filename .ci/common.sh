# What `.ci/run` and `.ci/nightly` have in common; they source it.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
scratch=$(mktemp -d)
begun=()
# When each step began is printed at the end, however it ends.
trap 'printf "%s\n" "" "${begun[@]}"; rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
# Nothing may be skipped for want of a server here.
export CI=true
# What a user's shell may have set must not decide what is tested here.
unset KERAS_BACKEND PYTHONPATH VIRTUAL_ENV

step() {
    begun+=("after $((SECONDS / 60)) min: $*")
    printf '\n=== %s (after %d min)\n' "$*" "$((SECONDS / 60))"
}

# The shell command in README.md's fenced block below the line `<!-- $1 -->`.
readme_command() {
    local command
    command=$(awk -v mark="<!-- $1 -->" '
        $0 == mark { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside
    ' README.md)
    if [[ $command != *" && "* ]]; then
        echo "README.md has no '<install> && <run>' below <!-- $1 -->" >&2
        return 1
    fi
    printf '%s' "$command"
}

# Makes the virtual environment $1 and prepares this shell to use it.
use_environment() {
    if [[ ! -e $scratch/$1 ]]; then
        python3 -m venv "$scratch/$1"
    fi
    # shellcheck source=/dev/null
    source "$scratch/$1/bin/activate"
}

# Installs Debian's PostgreSQL, for the tests of searches, where it is missing.
need_postgresql() {
    if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ||
        command -v initdb >/dev/null; then
        return
    fi
    step "PostgreSQL"
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq \
        --no-install-recommends postgresql >/dev/null
}

# Makes the environment $1 with everything that the tests need on any backend.
# Further arguments are installed first, and kept.
use_test_environment() {
    use_environment "$1"
    python --version
    if (($# > 1)); then
        python -m pip install "${@:2}"
    fi
    python -m pip install -e ".[test-all]"
    python -c 'import importlib.metadata as m; print("torch", m.version("torch"))'
}

# Prints the path of the newest interpreter above Python 3.11 that there is.
newer_python() {
    local candidate
    for candidate in python3.14 python3.13 python3.12 \
        "$HOME"/.pyenv/versions/3.1[2-9].*/bin/python; do
        "$candidate" -c \
            'import sys; print(sys.version_info[1], sys.executable)' \
            2>/dev/null || true
    done | sort -n | tail -1 | cut -d" " -f2
}

# The requirement of pyproject.toml on $1 with its lower bound: `keras==3.15`.
lower_bound() {
    python3 - "$1" <<'PYTHON'
import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
for dependency in dependencies:
    bound = re.match(rf"{sys.argv[1]}>=([\d.]+)", dependency)
    if bound:
        print(f"{sys.argv[1]}=={bound[1]}")
        break
else:
    sys.exit(f"pyproject.toml has no lower bound for {sys.argv[1]}.")
PYTHON
}

quickstart=$(readme_command quickstart-command)
test_suite=$(readme_command test-command)
