#!/usr/bin/env bash
# The start of db: look at the data and the passwords, then start MySQL as its image does.
set -euo pipefail

data=/var/lib/mysql
# This file is there while a first start runs. At its end, users.sh deletes the file. Its name is
# hidden, because MySQL must still find the folder empty.
first_start=$data/.cct-first-start

require_passwords() {
  for user in root seeder app; do
    if [ ! -s /run/secrets/$user/password ]; then
      echo "The volume $user-password is empty, but the data has that user's old password:" \
        "bring the volume back, or delete all data with: docker compose down -v"
      exit 1
    fi
  done
}

if [ -e "$first_start" ]; then
  echo "The first start of the database was cut off. Nobody could log in yet, so it begins again."
  find "$data" -mindepth 1 -maxdepth 1 -not -name '.*' -not -name lost+found -exec rm -r {} +
elif [ -d $data/mysql ]; then # the folder of MySQL's own tables
  require_passwords
elif [ -z "$(ls --ignore=lost+found $data)" ]; then
  touch $first_start
  sync $data # a power cut must not lose the file
else
  echo "The volume data has files, but no database. Nothing was deleted. If you do not need these" \
    "files, delete the volumes with: docker compose down -v"
  exit 1
fi

rm -rf /tmp/lock-* # of users.sh and scratch.sh; Kubernetes keeps /tmp in a restart
users.sh passwords
exec docker-entrypoint.sh "$@"
