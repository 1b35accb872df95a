// Express on Node, mysql2's pool.
import express from "express"
import mysql from "mysql2/promise"
import nunjucks from "nunjucks"

const { DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, PAGES, PORT } = process.env
const app = express().disable("etag").disable("x-powered-by")
nunjucks.configure(PAGES, { express: app })
const pool = mysql.createPool({
  host: DB_HOST,
  port: Number(DB_PORT),
  user: DB_USER,
  password: DB_PASSWORD,
  database: "cct",
  ssl: { rejectUnauthorized: false },
  connectionLimit: 8,
  rowsAsArray: true,
})

app.get("/", async (request, response) => {
  const after = Number(request.query.after ?? 0)
  const [accounts] = await pool.execute("SELECT id, name, email FROM accounts WHERE id > ? ORDER BY id LIMIT 50", [after])
  response.render("page.html", { accounts })
})

app.listen(Number(PORT), "127.0.0.1", 4096)
