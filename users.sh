# The database's users, with the passwords of /run/secrets/<user>/password. The first start of db runs this (that is
# what MySQL's image does with it), and again, with the word rotate, who wants new passwords.
if [ "$1" = rotate ]; then
  for user in app seeder; do
    password=$(openssl rand -hex 24)
    echo "$password" >/run/secrets/$user/password
  done
fi
MYSQL_PWD=$(cat /run/secrets/root/password) mysql --protocol=socket --user=root <<SQL
CREATE USER IF NOT EXISTS app, seeder;
ALTER USER app IDENTIFIED BY '$(cat /run/secrets/app/password)' REQUIRE SSL;
ALTER USER seeder IDENTIFIED BY '$(cat /run/secrets/seeder/password)' REQUIRE SSL;
GRANT SELECT ON cct.* TO app;
GRANT CREATE, INSERT, SELECT ON cct.* TO seeder;
SQL
