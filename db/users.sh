#!/usr/bin/env bash
# The users of the database and their passwords.
#
#   users.sh passwords  make the passwords that are missing; start-db.sh runs this
#   users.sh create     create the users; MySQL's image runs this at the end of a first start
#   users.sh rotate     replace the passwords of app and seeder, while everything runs
set -euo pipefail
umask 077

# Each password is a file in a volume that db shares only with the service of that user.
password_file() { # USER
  echo "/run/secrets/$1/password"
}

make_password() { # FILE
  openssl rand -hex 24 >"$1"
  chmod 440 "$1"
  chown 10001:mysql "$1" # the service reads the file as user 10001, db reads it as group mysql
  sync "$1" # a power cut must not empty it
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

create_users() {
  as-root.sh mysql <<SQL
CREATE USER IF NOT EXISTS app IDENTIFIED BY '$(cat "$(password_file app)")' REQUIRE SSL;
CREATE USER IF NOT EXISTS seeder IDENTIFIED BY '$(cat "$(password_file seeder)")' REQUIRE SSL;
GRANT SELECT ON cct.* TO app;
GRANT CREATE, INSERT, SELECT ON cct.* TO seeder;
SQL
  # From now on, the data stays: see start-db.sh.
  rm /var/lib/mysql/.cct-first-start
  sync /var/lib/mysql
}

refuse() { # SENTENCE
  echo "$1" >&2
  exit 1
}

rotate_passwords() {
  file=$(password_file app)
  # A secret of Swarm or Kubernetes cannot be replaced. There, this folder is no mount of its own.
  grep -q " /run/secrets/app " /proc/mounts ||
    refuse "$file cannot be replaced here. Rotate as docs/swarm.md or docs/kubernetes.md says."
  # Only one process can make this folder. (The image has no flock.)
  mkdir /tmp/lock-rotate 2>/dev/null ||
    refuse "Another rotation runs. If it was killed, restart db."
  trap "rmdir /tmp/lock-rotate" EXIT
  # The password of root never leaves db, and stays.
  rotate_password app
  rotate_password seeder
}

rotate_password() { # USER
  file=$(password_file "$1")
  # A rotation that was cut off may have left another password in the database.
  as-root.sh mysql <<<"ALTER USER $1 IDENTIFIED BY '$(cat "$file")'"
  make_password "$file.new"
  # The old password works until the file holds the new one.
  as-root.sh mysql <<<"ALTER USER $1 IDENTIFIED BY '$(cat "$file.new")' RETAIN CURRENT PASSWORD"
  mv "$file.new" "$file"
  as-root.sh mysql <<<"ALTER USER $1 DISCARD OLD PASSWORD"
}

case ${1:-} in
  passwords) make_missing_passwords ;;
  create) create_users ;;
  rotate) rotate_passwords ;;
  *) refuse "Usage: users.sh passwords|create|rotate" ;;
esac
