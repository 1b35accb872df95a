# The database's users, with the passwords that stand in /run/secrets/<user>/password. MySQL's image runs this on the
# first start of db; run again, it sets the passwords anew.
MYSQL_PWD=$(cat /run/secrets/root/password) mysql --protocol=socket --user=root <<SQL
CREATE USER IF NOT EXISTS app, seeder;
ALTER USER app IDENTIFIED BY '$(cat /run/secrets/app/password)' REQUIRE SSL;
ALTER USER seeder IDENTIFIED BY '$(cat /run/secrets/seeder/password)' REQUIRE SSL;
GRANT SELECT ON cct.* TO app;
GRANT CREATE, INSERT, SELECT ON cct.* TO seeder;
SQL
