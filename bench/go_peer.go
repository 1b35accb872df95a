// net/http and html/template of Go's standard library, go-sql-driver with a prepared statement.
package main

import (
	"database/sql"
	"html/template"
	"log"
	"net/http"
	"os"

	"github.com/go-sql-driver/mysql"
)

const query = "SELECT id, name, email FROM accounts WHERE id > ? ORDER BY id LIMIT 50"

// html/template drops the comments of a program inside the page: what is around the rows goes in as it is.
const page = `{{.Head}}{{range $i, $account := .Accounts}}{{if $i}}
{{end}}<tr><td>{{.ID}}</td><th scope="row">{{.Name}}</th><td>{{.Email}}</td></tr>{{end}}{{.Tail}}`

type account struct {
	ID          int64
	Name, Email string
}

func read(name string) template.HTML {
	text, err := os.ReadFile(os.Getenv("PAGES") + "/" + name)
	if err != nil {
		log.Fatal(err)
	}
	return template.HTML(text)
}

func select50(statement *sql.Stmt, after string) ([]account, error) {
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
	if err != nil {
		log.Fatal(err)
	}
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	statement, err := db.Prepare(query)
	if err != nil {
		log.Fatal(err)
	}
	accounts := template.Must(template.New("page").Parse(page))
	head, tail := read("head.html"), read("tail.html")

	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		after := request.URL.Query().Get("after")
		if after == "" {
			after = "0"
		}
		rows, err := select50(statement, after)
		if err != nil {
			http.Error(response, err.Error(), http.StatusServiceUnavailable)
			return
		}
		response.Header().Set("Content-Type", "text/html; charset=utf-8")
		err = accounts.Execute(response, map[string]any{"Head": head, "Tail": tail, "Accounts": rows})
		if err != nil {
			log.Print(err)
		}
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
