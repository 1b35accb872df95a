#!/usr/bin/env bash
# Replace the accounts with a backup: docker compose exec -T db restore.sh <backup.sql
# shellcheck source=db/scratch.sh
source scratch.sh # has what this script shares with load-csv.sh

make_scratch
# mysqldump ends a whole backup with this line. Without it, sed ends with the exit code 1 (q1).
sed '${/^-- Dump completed/!q1}' | in_scratch ||
  refuse "The backup is not complete, or MySQL refuses it (see above)."
[ -n "$(in_scratch --execute "SHOW TABLES")" ] || refuse "The backup is empty."
swap_tables
echo "The backup is restored."
