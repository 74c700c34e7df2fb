package coherence

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"latchkey/dht/keyspace"
)

// NameBytesMax bounds the names of applications and of objects, in bytes.
const NameBytesMax = 1024

// ErrName matches the error about a name that is empty, too long, no UTF-8 or has control characters.
var ErrName = errors.New("coherence: bad name")

// checkName refuses names that people could not read or type.
func checkName(what, name string) error {
	switch {
	case name == "" || len(name) > NameBytesMax:
		return fmt.Errorf("%w: the name of %s has %d bytes, and 1 to %d are allowed", ErrName, what, len(name), NameBytesMax)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%w: the name of %s, %.80q, is not UTF-8 or has control characters", ErrName, what, name)
	}
	return nil
}

// CheckNames says what is wrong with the names of an application and of an object ([ErrName]).
func CheckNames(app, object string) error {
	return cmp.Or(checkName("an application", app), checkName("an object", object))
}

// AppKey returns the key of an application, whose group keeps its manager.
func AppKey(app string) keyspace.Key { return sha256.Sum256([]byte("app/" + app)) }

// dirBytes is how much of an object's key its directory gives: more than a prefix can be long, so that the objects of a directory share
// one group, and what is left tells them apart.
const dirBytes = 8

// ObjectKey returns the key of an object, whose group keeps its manager. What stands before the last slash of its name is its directory.
func ObjectKey(app, name string) keyspace.Key {
	full := "object/" + app + "/" + name
	key := sha256.Sum256([]byte(full))
	dir := sha256.Sum256([]byte(full[:len("object/"+app+"/")+strings.LastIndexByte(name, '/')+1]))
	copy(key[:dirBytes], dir[:])
	return key
}
