// The peer: net/http and html/template of Go's standard library, go-sql-driver.
package main

import (
	"database/sql"
	"html/template"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
)

const query = "SELECT id, name, email FROM accounts WHERE id > ? ORDER BY id LIMIT 50"

// What is around the rows goes in as it is: html/template would drop the comments of a script.
const page = `{{.Head}}{{range $i, $account := .Accounts}}{{if $i}}
{{end}}<tr><td>{{.ID}}</td><th scope="row">{{.Name}}</th><td>{{.Email}}</td></tr>{{end}}{{.Tail}}`

type account struct {
	ID          int64
	Name, Email string
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func read(statement *sql.Stmt, after string) ([]account, error) {
	rows, err := statement.Query(after)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	accounts := make([]account, 0, 50)
	for rows.Next() {
		var a account
		if err := rows.Scan(&a.ID, &a.Name, &a.Email); err != nil {
			return nil, err
		}
		accounts = append(accounts, a)
	}
	return accounts, rows.Err()
}

func main() {
	login := mysql.NewConfig()
	login.Net, login.Addr = "tcp", os.Getenv("DB_HOST")+":"+os.Getenv("DB_PORT")
	login.User, login.Passwd, login.DBName = os.Getenv("DB_USER"), os.Getenv("DB_PASSWORD"), "cct"
	login.TLSConfig = "skip-verify"
	db, err := sql.Open("mysql", login.FormatDSN())
	check(err)
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	statement, err := db.Prepare(query)
	check(err)

	text, err := os.ReadFile(os.Getenv("PAGE"))
	check(err)
	first := strings.Index(string(text), "<tr><td>")
	last := strings.LastIndex(string(text), "</tr>") + len("</tr>")
	head, tail := template.HTML(text[:first]), template.HTML(text[last:])
	accounts := template.Must(template.New("page").Parse(page))

	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		after := request.URL.Query().Get("after")
		if after == "" {
			after = "0"
		}
		rows, err := read(statement, after)
		if err != nil {
			http.Error(response, err.Error(), http.StatusServiceUnavailable)
			return
		}
		response.Header().Set("Content-Type", "text/html; charset=utf-8")
		values := map[string]any{"Head": head, "Tail": tail, "Accounts": rows}
		if err := accounts.Execute(response, values); err != nil {
			log.Print(err)
		}
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
