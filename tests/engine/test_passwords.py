"""The passwords: where they are, replaced while everything runs, and lost."""

import re
import subprocess

import pytest

from tests.stack import Stack, docker
from tools.waiting import until


def test_rotated_passwords_need_no_restart(stack: Stack) -> None:
    old = stack.passwords()
    started = stack.started()
    stack.exec("db", "users.sh", "rotate")

    login = ("mysql", "-h127.0.0.1", "-uapp", f"-p{old[0]}", "cct")
    with pytest.raises(AssertionError, match="Access denied"):
        stack.exec("db", *login)
    stack.end_app_connections()
    assert stack.get("/ready") == (200, "ready\n")
    stack.up()  # the seeder logs in with its new password
    assert stack.started() == started
    assert stack.passwords()[0] != old[0]
    assert stack.passwords()[2] != old[2]


def test_each_step_of_a_rotation_leaves_a_good_password(stack: Stack) -> None:
    """After each SQL statement of `rotate`, both users can log in with the password of the file.

    An earlier rotation was cut off: the file still has the old password.
    """
    stack.sql("ALTER USER app IDENTIFIED BY 'unknown' RETAIN CURRENT PASSWORD")
    login = "mysql -h 127.0.0.1 -u $user -e 'SELECT 1' cct"
    check = f"for user in app seeder; do MYSQL_PWD=$(cat /run/secrets/$user/password) {login}; done"
    # A function takes the place of as-root.sh: it checks the passwords after each statement.
    steps = f'as-root.sh() {{ command as-root.sh "$@" && {check}; }}; export -f as-root.sh'
    stack.exec("db", "bash", "-ec", f"{steps}; bash -x /usr/local/bin/users.sh rotate")


def test_rotations_at_once_leave_good_passwords(stack: Stack) -> None:
    old = stack.passwords()
    rotate = ["docker", "exec", stack.container("db"), "users.sh", "rotate"]
    rotations = [subprocess.Popen(rotate, env=stack.env, stderr=subprocess.PIPE) for _ in range(4)]
    ends = {(rotation.communicate()[1], rotation.returncode) for rotation in rotations}
    assert ends <= {(b"", 0), (b"Another rotation runs. If it was killed, restart db.\n", 1)}
    assert (b"", 0) in ends
    assert stack.passwords()[0] != old[0]
    stack.end_app_connections()
    assert stack.get("/ready") == (200, "ready\n")
    stack.up()  # the seeder logs in


def test_emptied_password_volume_is_named(stack: Stack) -> None:
    password = stack.passwords()[0]
    stack.compose("down")
    volume = f"{stack.name}_app-password"
    docker("volume", "rm", volume)
    stack.compose("up", "-d", "db")
    sentence = (
        "The volume app-password is empty, but the data has that user's old password: "
        "bring the volume back"
    )
    until(lambda: sentence in stack.logs("db"), "told")
    until(lambda: stack.inspect("db")["RestartCount"] > 0, "refused")

    bring_back = f"echo {password} >/volume/password; chmod 444 /volume/password"
    docker("run", "--rm", f"--volume={volume}:/volume", "mysql:9.7", "sh", "-c", bring_back)
    stack.wait_until_healthy("db")  # between two restarts, db is unhealthy, and `up` fails
    stack.up()
    assert len(stack.page()["accounts"]) == 50


def test_passwords_stand_nowhere_else(stack: Stack) -> None:
    """No log, configuration, description of a container or history of an image has a password.

    The first start makes the passwords, so the test begins with a first start.
    """
    stack.compose("down", "-v")
    stack.up()
    containers = stack.compose("ps", "-aq").split()
    images = stack.images()
    text = stack.compose("logs")
    text += stack.compose("config")
    text += docker("inspect", *containers, *images)
    for image in images:
        text += docker("history", "--no-trunc", image)

    passwords = stack.passwords()
    assert len(set(passwords)) == 3
    for password in passwords:
        assert len(password) >= 40
        assert password not in text
    assert not re.search(r'"\w*PASSWORD=', text)  # a password would stand in such a variable
