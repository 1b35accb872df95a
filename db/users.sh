#!/usr/bin/env bash
# The users of the database and their passwords.
#
#   users.sh            create the users; MySQL's image runs this on the first start of db
#   users.sh passwords  make the passwords that are missing; start-db.sh runs this
#   users.sh rotate     replace the passwords of app and seeder, while everything runs
set -euo pipefail

# Each password is a file in a volume that db shares only with the service of that user.
password_file() { # USER
  echo "/run/secrets/$1/password"
}

make_password() { # FILE
  # The service reads the file as user 10001. db reads the file as group mysql.
  openssl rand -hex 24 | install -o 10001 -g mysql -m 440 /dev/stdin "$1"
}

create_users() {
  as-root.sh mysql <<SQL
CREATE USER IF NOT EXISTS app IDENTIFIED BY '$(cat "$(password_file app)")' REQUIRE SSL;
CREATE USER IF NOT EXISTS seeder IDENTIFIED BY '$(cat "$(password_file seeder)")' REQUIRE SSL;
GRANT SELECT ON cct.* TO app;
GRANT CREATE, INSERT, SELECT ON cct.* TO seeder;
SQL
  touch /var/lib/mysql/cct-first-start-complete # start-db.sh looks for this file
}

make_missing_passwords() {
  for user in root seeder app; do
    file=$(password_file "$user")
    if [ ! -s "$file" ]; then
      make_password "$file.new"
      mv "$file.new" "$file" # whole or not at all, if this is cut off
    fi
  done
}

can_replace() { # FILE
  # Swarm and Kubernetes mount only the file, not its folder. Then neither mv nor a hard link works.
  ln -f "$1" "$1.test" && rm "$1.test"
}

rotate_password() { # USER
  file=$(password_file "$1")
  if ! can_replace "$file" 2>/dev/null; then
    echo "$file cannot be replaced here. Rotate as docs/swarm.md or docs/kubernetes.md says." >&2
    exit 1
  fi
  make_password "$file.new"
  # The old password works until the file holds the new one.
  as-root.sh mysql <<<"ALTER USER $1 IDENTIFIED BY '$(cat "$file.new")' RETAIN CURRENT PASSWORD"
  mv "$file.new" "$file"
  as-root.sh mysql <<<"ALTER USER $1 DISCARD OLD PASSWORD"
}

case ${1:-create} in
  create) create_users ;;
  passwords) make_missing_passwords ;;
  rotate)
    # The password of root never leaves db, and stays.
    rotate_password app
    rotate_password seeder
    ;;
  *)
    echo "Usage: users.sh [passwords|rotate]" >&2
    exit 1
    ;;
esac
