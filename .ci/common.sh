# What `.ci/run` and `.ci/nightly` have in common; they source it.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
# Nothing may be skipped for want of a server here.
export CI=true
# What a user's shell may have set must not decide what is tested here.
unset KERAS_BACKEND PYTHONPATH VIRTUAL_ENV

step() {
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

quickstart=$(readme_command quickstart-command)
test_suite=$(readme_command test-command)
