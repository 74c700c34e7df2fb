// Package sqlguard is a fencing guard for what a lock protects in a database: the highest token seen is a row beside the data, and
// every write carries its token as a condition on that row, in one transaction. A holder that has been delayed past its lease then
// changes nothing, whatever it believes (lock-protocols.md section 2.5).
//
// It is written for SQLite and PostgreSQL, whose dialects agree on what it uses, and tested with SQLite. It needs no package of
// latchkey: the token is the number of lockservice.Handle.Token, or of LATCHKEY_FENCE in a command that "latchkey lock" runs.
package sqlguard

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
)

// Schema makes the table of guards, unless it is there.
const Schema = `CREATE TABLE IF NOT EXISTS latchkey_guard (
	name  TEXT PRIMARY KEY,
	token BIGINT NOT NULL
)`

// claim raises a lock's token, or changes no row if a higher one is there. It is the first statement of the transaction, so it also
// takes the row's lock: transactions under one name follow each other.
const claim = `INSERT INTO latchkey_guard (name, token) VALUES ($1, $2)
	ON CONFLICT (name) DO UPDATE SET token = excluded.token WHERE latchkey_guard.token <= excluded.token`

// Errors of [Do].
var (
	// ErrStaleToken is matched when a higher token has been seen: another holder came later.
	ErrStaleToken = errors.New("sqlguard: stale token")
	// ErrTokenRange is matched by a token above what a BIGINT holds. The first 127 generations of an overlay have none.
	ErrTokenRange = errors.New("sqlguard: token above what a column holds")
)

// Do runs effect in a transaction under the token of the lock called name, and commits it; or, when a higher token has been seen,
// returns [ErrStaleToken] and runs nothing. When effect fails nothing is changed, the token included, and its error is returned. An
// error of the commit tells nothing about whether it took effect.
func Do(ctx context.Context, db *sql.DB, name string, token uint64, effect func(*sql.Tx) error) error {
	switch {
	case token == 0:
		return fmt.Errorf("%w: 0 is no token", ErrStaleToken)
	case token > math.MaxInt64:
		return fmt.Errorf("%w: %d", ErrTokenRange, token)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("sqlguard: begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	res, err := tx.ExecContext(ctx, claim, name, int64(token))
	if err != nil {
		return fmt.Errorf("sqlguard: claim: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return fmt.Errorf("sqlguard: claim: %w", err)
	} else if n == 0 {
		return fmt.Errorf("%w: %d for %q: another holder came later", ErrStaleToken, token, name)
	}
	if err := effect(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("sqlguard: commit: %w", err)
	}
	return nil
}
