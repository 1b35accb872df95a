#!/usr/bin/env bash
# Check what the machine must have, and install what is missing:
#   require.sh python PYTHON   Python 3.11 with venv
#   require.sh database        a MySQL or MariaDB server, and openssl
# It shows the command that installs something before it runs the command.
set -euo pipefail
PATH=$PATH:/usr/sbin

install() { # APT-PACKAGES BREW-PACKAGE WHAT
  if command -v apt-get >/dev/null; then
    sudo=$([ "$(id -u)" = 0 ] || echo "sudo ")
    command="${sudo}apt-get update -q && ${sudo}apt-get install -qy --no-install-recommends $1"
  elif command -v brew >/dev/null; then
    command="brew install $2"
  else
    echo "$3 is missing. Install it."
    exit 1
  fi
  echo "$3 is missing. This command installs it:"
  echo "  $command"
  echo "To avoid this, press Ctrl-C, install it in your own way, and start again."
  eval "$command"
}

case $1 in
  python)
    if ! "$2" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."
      exit 1
    fi
    "$2" -c 'import ensurepip' 2>/dev/null || install python3-venv python "Python's venv"
    ;;
  database)
    server=$(command -v mysqld || command -v mariadbd || true)
    if [ -z "$server" ] || ! command -v openssl >/dev/null; then
      install "mariadb-client-core mariadb-server-core openssl" "mariadb openssl" \
        "openssl, or a MySQL or MariaDB server,"
    fi
    ;;
esac
