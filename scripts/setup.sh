# Creates .venv and installs the dependencies of this project into it, once. Sourced by quickstart.sh and test.sh.
# Usage: install_into_venv EXTRA    (such as "[test]")

PYTHON=${PYTHON:-python3}

install_into_venv() {
    local extra=$1 stamp wanted
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $("$PYTHON" --version 2>&1) is too old; Python 3.11 or newer is needed, for example: PYTHON=python3.12 bash $0" >&2
        exit 2
    fi
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "Creating the virtual environment .venv ..."
        if ! "$PYTHON" -m venv --clear .venv; then
            rm -rf .venv
            echo "error: $PYTHON cannot create virtual environments; install venv (Debian: apt install python3-venv)" >&2
            exit 2
        fi
    fi
    stamp=".venv/installed${extra}"
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing the dependencies into .venv (a few minutes the first time) ..."
        .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".${extra}"
        echo "$wanted" >"$stamp"
    fi
}
