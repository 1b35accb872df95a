# Makes the users of the database, with the passwords of /run/secrets/<user>/password. MySQL's image runs it on the first
# start. New passwords: docker compose exec db bash /docker-entrypoint-initdb.d/users.sh rotate
set -e
mysql_as_root() { MYSQL_PWD=$(cat /run/secrets/root/password) mysql --protocol=socket --user=root; }

if [ "$1" = rotate ]; then
  for user in app seeder; do # root's never leaves db; an old one works until the file has the new one
    password=$(openssl rand -hex 24)
    mysql_as_root <<<"ALTER USER $user IDENTIFIED BY '$password' RETAIN CURRENT PASSWORD"
    echo "$password" 1<>/run/secrets/$user/password # in place, of equal length: nobody reads an empty or half file
    mysql_as_root <<<"ALTER USER $user DISCARD OLD PASSWORD"
  done
  exit
fi

mysql_as_root <<SQL
CREATE USER IF NOT EXISTS app, seeder;
ALTER USER app IDENTIFIED BY '$(cat /run/secrets/app/password)' REQUIRE SSL;
ALTER USER seeder IDENTIFIED BY '$(cat /run/secrets/seeder/password)' REQUIRE SSL;
GRANT SELECT ON cct.* TO app;
GRANT CREATE, INSERT, SELECT ON cct.* TO seeder;
SQL
