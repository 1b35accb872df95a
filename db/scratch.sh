#!/usr/bin/env bash
# restore.sh and load-csv.sh read this file. They load into a database beside cct, and then swap the
# tables. So a load that fails or is cut off changes nothing.
set -euo pipefail

password=$(openssl rand -hex 24)
upload=/var/lib/mysql/.upload # on the disk, because /tmp is memory
busy="MySQL cannot swap the tables (see above). Try again when nobody else uses them."

refuse() { # SENTENCE
  echo "$1 The accounts are as before." >&2
  exit 1
}

as_root() { # SQL
  # A statement that waits for a lock of cct's tables blocks all readers. It gives up after 1 s.
  as-root.sh mysql --init-command="SET lock_wait_timeout = 1" <<<"$1"
}

drop_scratch() {
  as_root "DROP DATABASE IF EXISTS cct_scratch; DROP USER IF EXISTS cct_scratch@localhost"
}

finish() {
  drop_scratch || true
  rm -f $upload
  rmdir /tmp/lock-scratch
}

# Make the database cct_scratch, and a user who can write only there.
make_scratch() {
  # Only one process can make this folder. (The image has no flock.)
  mkdir /tmp/lock-scratch 2>/dev/null ||
    refuse "Another restore or load runs. If it was killed, restart db."
  trap finish EXIT
  drop_scratch # a run that was cut off may have left it
  as_root "CREATE DATABASE cct_scratch;
    CREATE USER cct_scratch@localhost IDENTIFIED BY '$password';
    GRANT ALL ON cct_scratch.* TO cct_scratch@localhost"
}

# Run mysql as that user.
in_scratch() { # OPTION...
  MYSQL_PWD=$password mysql --user=cct_scratch --skip-column-names "$@" cct_scratch
}

# Let the tables of cct_scratch take the place of those in cct. The old ones go with cct_scratch:
#   RENAME TABLE cct.accounts TO cct_scratch.old_accounts, cct_scratch.accounts TO cct.accounts
swap_tables() {
  renames=""
  for table in $(in_scratch --execute "SHOW TABLES"); do
    # A table that is new to cct needs an empty one to swap with.
    as_root "CREATE TABLE IF NOT EXISTS cct.$table LIKE cct_scratch.$table" || refuse "$busy"
    renames+="${renames:+, }cct.$table TO cct_scratch.old_$table, cct_scratch.$table TO cct.$table"
  done
  # One statement for all: each reader sees only old rows, or only new rows.
  as_root "RENAME TABLE $renames" || refuse "$busy"
}
