#!/usr/bin/env bash
# Replace the accounts with those of a CSV file:
#   docker compose exec -T db load-csv.sh $(wc -c <my.csv) <my.csv
# The number of bytes tells a whole file from one whose sender was stopped.
# shellcheck source=db/scratch.sh
source scratch.sh # has what this script shares with restore.sh

columns=name,email

make_scratch
cat >$upload
[ "$(wc -c <$upload)" = "${1:-}" ] ||
  refuse "The file is not whole: its number of bytes is not ${1:-given}."

# From here on, standard input is the file without what spreadsheets add: a byte order mark, and \r
# at the end of each line. `read` takes the first line, and LOAD DATA the others.
exec < <(sed '1s/^\xef\xbb\xbf//; s/\r$//' $upload)
read -r header || true
[ "${header//\"/}" = $columns ] ||
  refuse "The first line must be $columns, in UTF-8 and with a comma."

as_root "CREATE TABLE cct_scratch.accounts LIKE cct.accounts" || refuse "$busy"
# LOCAL: this client reads the file. MySQL then turns errors into warnings, so each warning counts.
result=$(in_scratch --local-infile --execute "
  LOAD DATA LOCAL INFILE '/dev/stdin' INTO TABLE accounts CHARACTER SET utf8mb4
    FIELDS TERMINATED BY ',' OPTIONALLY ENCLOSED BY '\"' ESCAPED BY ''
    ($columns);
  SHOW WARNINGS LIMIT 5;
  SELECT CONCAT('Warnings: ', @@warning_count)") || refuse "MySQL refuses the file (see above)."
[ "$result" = "Warnings: 0" ] || refuse "$result
Row 1 is the line after $columns."

# An id is the number of its row. A value of two lines mostly lacks its closing quote.
bad=$(in_scratch --execute "
  SELECT id FROM accounts
  WHERE '' IN (TRIM(name), TRIM(email)) OR CONCAT(name, email) LIKE '%\n%'
  ORDER BY id LIMIT 1")
[ -z "$bad" ] || refuse "Row $bad after $columns has an empty value, or a value of two lines."
count=$(in_scratch --execute "SELECT COUNT(*) FROM accounts")
[ "$count" != 0 ] || refuse "The file has no accounts."

swap_tables
echo "Loaded $count accounts."
