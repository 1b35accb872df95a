// The page of cct in Go. With the argument "shared", requests share queries as in cct.
package main

import (
	"bytes"
	"database/sql"
	"html/template"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/singleflight"
)

const rows = `{{range .}}<tr><td>{{.ID}}</td><th scope="row">{{.Name}}</th><td>{{.Email}}</td></tr>
{{end}}`

type account struct {
	ID          int64
	Name, Email string
}

var (
	statement *sql.Stmt
	page      *template.Template
	reads     singleflight.Group
	slots     = make(chan struct{}, 2) // queries at once
)

// render answers with the accounts after an id.
func render(after string) ([]byte, error) {
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
	if rows.Err() != nil {
		return nil, rows.Err()
	}
	var body bytes.Buffer
	err = page.Execute(&body, accounts)
	return body.Bytes(), err
}

// share does the same by the rule of cct: requests share a query that has not begun.
func share(after string) ([]byte, error) {
	body, err, _ := reads.Do(after, func() (any, error) {
		slots <- struct{}{}
		defer func() { <-slots }()
		reads.Forget(after) // the query begins: nobody joins any more
		return render(after)
	})
	return body.([]byte), err
}

func main() {
	password, err := os.ReadFile(os.Getenv("DB_PASSWORD_FILE"))
	check(err)
	login := mysql.NewConfig()
	login.User, login.Passwd = os.Getenv("DB_USER"), strings.TrimSpace(string(password))
	login.Net, login.Addr, login.DBName, login.TLSConfig = "tcp", "db:3306", "cct", "skip-verify"
	db, err := sql.Open("mysql", login.FormatDSN())
	check(err)
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	query := "SELECT id, name, email FROM accounts WHERE id > ? ORDER BY id LIMIT 50"
	statement, err = db.Prepare(query)
	check(err)
	text, err := os.ReadFile("/bench/page.html")
	check(err)
	page = template.Must(template.New("").Parse(strings.Replace(string(text), "$rows", rows, 1)))

	answer := render
	if len(os.Args) > 1 {
		answer = share
	}
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		after := request.URL.Query().Get("after")
		if after == "" {
			after = "0"
		}
		body, err := answer(after)
		if err != nil {
			http.Error(response, err.Error(), http.StatusServiceUnavailable)
			return
		}
		response.Write(body)
	})
	log.Fatal(http.ListenAndServe(":80", nil))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
