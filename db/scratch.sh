#!/usr/bin/env bash
# restore.sh and load-csv.sh read this file. They load into a database beside cct, and then swap the
# tables. So a load that fails or is cut off changes nothing.
set -euo pipefail

password=$(openssl rand -hex 24)

refuse() { # SENTENCE
  echo "$1 The accounts are as before." >&2
  exit 1
}

# Make the database cct_scratch, and a user who can write only there.
make_scratch() {
  # Only one process can make this folder. (The image has no flock.)
  mkdir /tmp/lock-scratch 2>/dev/null || refuse "Another restore or load runs."
  trap remove_scratch EXIT
  drop_scratch # a run that was cut off may have left it
  as-root.sh mysql <<SQL
CREATE DATABASE cct_scratch;
CREATE USER cct_scratch@localhost IDENTIFIED BY '$password';
GRANT ALL ON cct_scratch.* TO cct_scratch@localhost;
SQL
}

drop_scratch() {
  as-root.sh mysql <<SQL
DROP DATABASE IF EXISTS cct_scratch;
DROP USER IF EXISTS cct_scratch@localhost;
SQL
}

remove_scratch() {
  drop_scratch || true
  rmdir /tmp/lock-scratch
}

# Run mysql as the user of cct_scratch.
in_scratch() { # OPTION...
  MYSQL_PWD=$password mysql --user=cct_scratch --skip-column-names "$@" cct_scratch
}

# Let the tables of cct_scratch take the place of those in cct. The old ones go with cct_scratch.
swap_tables() {
  tables=$(in_scratch --execute "SHOW TABLES")
  renames=""
  for table in $tables; do
    # A table that is new to cct needs an empty one to swap with.
    as-root.sh mysql <<<"CREATE TABLE IF NOT EXISTS cct.$table LIKE cct_scratch.$table"
    renames+=", cct.$table TO cct_scratch.old_$table, cct_scratch.$table TO cct.$table"
  done
  # One RENAME for all: each reader sees only old rows or only new rows. While it waits for a
  # transaction, it blocks all readers. So it gives up after 10 s.
  as-root.sh mysql <<<"SET lock_wait_timeout = 10; RENAME TABLE ${renames#, }" ||
    refuse "The tables cannot be replaced (see above)."
}
