#!/usr/bin/env bash
# The start of db: check the data and the passwords, then start MySQL as its image does.
set -euo pipefail

data=/var/lib/mysql
complete=$data/cct-first-start-complete # users.sh makes this file

# True if a folder other than MySQL's own has files.
has_tables() {
  [ -n "$(find "$data" -mindepth 2 -type f -not -path "$data/mysql/*" -not -path "$data/sys/*" \
    -not -path "$data/performance_schema/*" -not -path "$data/#*" -print -quit 2>/dev/null)" ]
}

# Three states: data that is complete, data whose first start was cut off, and no data.
# Tables without the file $complete come from an older version of cct, or a power cut lost the file.
# Such tables stay.
if [ -e "$complete" ] || has_tables; then
  for user in root seeder app; do
    if [ ! -s /run/secrets/$user/password ]; then
      echo "The volume $user-password is empty, but the data has that user's old password:" \
        "bring the volume back, or delete all data with: docker compose down -v"
      exit 1
    fi
  done
elif [ -n "$(find "$data" -maxdepth 1 -type f -print -quit)" ]; then
  # MySQL's image skips its set-up where data exists, so this data would never get its users.
  # Nobody could log in yet, so nothing is lost.
  echo "The first start of the database was cut off. The database is still empty, so its first" \
    "start begins again."
  find "$data" -mindepth 1 -maxdepth 1 -not -name lost+found -exec rm -r {} +
fi

users.sh passwords
exec docker-entrypoint.sh "$@"
