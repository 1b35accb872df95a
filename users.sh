# The database's users, with the passwords of /run/secrets/<user>/password. The first start of db runs this, as MySQL's
# image does with what it finds in /docker-entrypoint-initdb.d; so does, with the word rotate, who wants new passwords.
set -e
root() { MYSQL_PWD=$(cat /run/secrets/root/password) mysql --protocol=socket --user=root; }

if [ "$1" = rotate ]; then
  for user in app seeder; do # the old password is good until the new one stands in the file
    password=$(openssl rand -hex 24)
    root <<<"ALTER USER $user IDENTIFIED BY '$password' RETAIN CURRENT PASSWORD"
    echo "$password" 1<>/run/secrets/$user/password # in place, as long as the old one: at no moment is the file empty
    root <<<"ALTER USER $user DISCARD OLD PASSWORD"
  done
  exit
fi

root <<SQL
CREATE USER IF NOT EXISTS app, seeder;
ALTER USER app IDENTIFIED BY '$(cat /run/secrets/app/password)' REQUIRE SSL;
ALTER USER seeder IDENTIFIED BY '$(cat /run/secrets/seeder/password)' REQUIRE SSL;
GRANT SELECT ON cct.* TO app;
GRANT CREATE, INSERT, SELECT ON cct.* TO seeder;
SQL
