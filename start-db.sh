#!/usr/bin/env bash
# The start of db: check the data and the passwords, then start MySQL as its image does.
set -euo pipefail

data=/var/lib/mysql
complete=$data/cct-first-start-complete # users.sh makes this file

has_data() {
  [ -e $data/mysql ]
}

has_tables() { # other than MySQL's own
  [ -n "$(find $data -mindepth 2 -name '*.ibd' -not -path '*/mysql/*' -not -path '*/sys/*')" ]
}

# A first start that was cut off leaves data that MySQL never completes. Nobody could log in yet,
# so nothing is lost. Data with tables and without the file comes from an older version of cct.
if has_data && [ ! -e $complete ] && ! has_tables; then
  echo "The first start of the database was cut off. There is nothing in it yet: it begins again."
  find $data -mindepth 1 -delete
fi

if has_data; then
  for user in root seeder app; do
    if [ ! -s /run/secrets/$user/password ]; then
      echo "The volume $user-password is empty, but the data has that user's old password:" \
        "bring the volume back, or delete all data with: docker compose down -v"
      exit 1
    fi
  done
fi
users.sh passwords
exec docker-entrypoint.sh "$@"
