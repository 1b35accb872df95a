"""Flask on gunicorn's threads, PyMySQL, a pool of connections."""

import os
import ssl

import pymysql
from dbutils.pooled_db import PooledDB
from flask import Flask, render_template, request

tls = ssl.create_default_context()
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
app = Flask(__name__, template_folder=os.environ["PAGES"])
pool = PooledDB(
    pymysql,
    maxconnections=8,
    blocking=True,
    ping=0,  # the pool connects again where a query fails; a ping for each query would halve the rate
    reset=False,
    host=os.environ["DB_HOST"],
    port=int(os.environ["DB_PORT"]),
    user=os.environ["DB_USER"],
    password=os.environ["DB_PASSWORD"],
    database="cct",
    autocommit=True,
    ssl=tls,
)


@app.get("/")
def show_accounts() -> str:
    """Answer with a page of accounts."""
    after = request.args.get("after", 0, int)
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, name, email FROM accounts WHERE id > %s ORDER BY id LIMIT 50", (after,)
        )
        accounts = cursor.fetchall()
    return render_template("page.html", accounts=accounts)
