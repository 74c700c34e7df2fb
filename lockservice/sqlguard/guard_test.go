package sqlguard

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	_ "modernc.org/sqlite"
)

func open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for _, q := range []string{Schema, `CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INTEGER NOT NULL)`, `INSERT INTO accounts VALUES ('a', 10)`} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func set(balance int) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE accounts SET balance = ? WHERE id = 'a'`, balance)
		return err
	}
}

func balance(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRow(`SELECT balance FROM accounts WHERE id = 'a'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The delayed write of a former holder changes nothing, and the token that refuses it is as durable as the data.
func TestStaleTokenChangesNothing(t *testing.T) {
	db := open(t)
	ctx := t.Context()
	if err := Do(ctx, db, "accounts", 33, set(20)); err != nil {
		t.Fatal(err)
	}
	if err := Do(ctx, db, "accounts", 34, set(30)); err != nil {
		t.Fatal(err)
	}
	for _, token := range []uint64{0, 33} {
		if err := Do(ctx, db, "accounts", token, set(99)); !errors.Is(err, ErrStaleToken) {
			t.Errorf("token %d: %v", token, err)
		}
	}
	if got := balance(t, db); got != 30 {
		t.Errorf("balance %d", got)
	}
	if err := Do(ctx, db, "accounts", 34, set(31)); err != nil { // the same holder
		t.Error(err)
	}
	if err := Do(ctx, db, "other", 1, set(32)); err != nil { // another lock
		t.Error(err)
	}
	if err := Do(ctx, db, "accounts", 1<<63, set(1)); !errors.Is(err, ErrTokenRange) {
		t.Errorf("a token that no column holds: %v", err)
	}
}

// What fails takes its token back with it: nothing of it has happened.
func TestFailedEffectLeavesTheTokenAsItWas(t *testing.T) {
	db := open(t)
	broken := errors.New("broken")
	err := Do(t.Context(), db, "accounts", 9, func(tx *sql.Tx) error {
		if err := set(99)(tx); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) || balance(t, db) != 10 {
		t.Errorf("%v, balance %d", err, balance(t, db))
	}
	if err := Do(t.Context(), db, "accounts", 8, set(11)); err != nil {
		t.Error(err)
	}
}

// However writers race, the last that is accepted has the highest token.
func TestHighestTokenWins(t *testing.T) {
	db := open(t)
	var wg sync.WaitGroup
	for token := range uint64(8) {
		wg.Go(func() {
			err := Do(t.Context(), db, "accounts", token+1, set(int(token+1)))
			if err != nil && !errors.Is(err, ErrStaleToken) {
				t.Error(fmt.Errorf("token %d: %w", token+1, err))
			}
		})
	}
	wg.Wait()
	if got := balance(t, db); got != 8 {
		t.Errorf("balance %d", got)
	}
}
