#!/usr/bin/env bash
# The health probe of db: log in over TCP as the server does, and make a query.
# On the first start, a temporary MySQL server runs before the users exist. It does not listen on
# TCP, so a login over TCP succeeds only when the first start is over.
MYSQL_PWD=$(cat /run/secrets/app/password)
export MYSQL_PWD
exec mysql --host=127.0.0.1 --user=app --connect-timeout=2 --execute="SELECT 1" cct
