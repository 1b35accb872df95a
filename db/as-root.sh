#!/usr/bin/env bash
# Run a client of the database as root: as-root.sh mysql cct
set -euo pipefail
MYSQL_PWD=$(cat /run/secrets/root/password)
export MYSQL_PWD
exec "$1" --user=root "${@:2}"
