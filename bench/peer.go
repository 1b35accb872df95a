// The page of cct in Go: net/http and html/template of the standard library, go-sql-driver.
package main

import (
	"bytes"
	"database/sql"
	"html/template"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/singleflight"
)

const query = "SELECT id, name, email FROM accounts WHERE id > ? ORDER BY id LIMIT 51"

// What is around the rows goes in as it is: it comes from the page of cct.
const page = `{{.Head}}{{range $i, $account := .Accounts}}{{if $i}}
{{end}}<tr><td>{{.ID}}</td><th scope="row">{{.Name}}</th><td>{{.Email}}</td></tr>{{end}}{{.Tail}}`

type account struct {
	ID          int64
	Name, Email string
}

var (
	statement  *sql.Stmt
	accounts   = template.Must(template.New("page").Parse(page))
	head, tail template.HTML
	reads      singleflight.Group
	slots      = make(chan struct{}, 2) // queries at once, as in cct
)

func read(after string) ([]account, error) {
	rows, err := statement.Query(after)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make([]account, 0, 51)
	for rows.Next() {
		var a account
		if err := rows.Scan(&a.ID, &a.Name, &a.Email); err != nil {
			return nil, err
		}
		found = append(found, a)
	}
	return found[:min(len(found), 50)], rows.Err()
}

func render(after string) ([]byte, error) {
	rows, err := read(after)
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	err = accounts.Execute(&body, map[string]any{"Head": head, "Tail": tail, "Accounts": rows})
	return body.Bytes(), err
}

// share lets requests for the same page share a query that has not begun, as cct does.
func share(after string) ([]byte, error) {
	body, err, _ := reads.Do(after, func() (any, error) {
		slots <- struct{}{}
		defer func() { <-slots }()
		reads.Forget(after) // nobody joins any more
		return render(after)
	})
	if err != nil {
		return nil, err
	}
	return body.([]byte), nil
}

func main() {
	password, err := os.ReadFile(os.Getenv("DB_PASSWORD_FILE"))
	check(err)
	login := mysql.NewConfig()
	login.Net, login.Addr, login.DBName, login.TLSConfig = "tcp", "db:3306", "cct", "skip-verify"
	login.User, login.Passwd = os.Getenv("DB_USER"), strings.TrimSpace(string(password))
	db, err := sql.Open("mysql", login.FormatDSN())
	check(err)
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(8)
	statement, err = db.Prepare(query)
	check(err)
	head, tail = surroundings()

	answer := render
	if len(os.Args) > 1 { // the argument "shared"
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
		response.Header().Set("Content-Type", "text/html; charset=utf-8")
		response.Write(body)
	})
	log.Fatal(http.ListenAndServe(":80", nil))
}

// surroundings asks cct for its first page, and returns what stands before and after the rows.
func surroundings() (template.HTML, template.HTML) {
	request, err := http.NewRequest("GET", "http://app", nil)
	check(err)
	request.Host = "localhost"
	request.Header.Set("Accept", "text/html")
	response, err := http.DefaultClient.Do(request)
	check(err)
	text, err := io.ReadAll(response.Body)
	check(err)
	first := bytes.Index(text, []byte("<tr><td>"))
	last := bytes.LastIndex(text, []byte("</tr>")) + len("</tr>")
	return template.HTML(text[:first]), template.HTML(text[last:])
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
